"""One loss per sample from RecBole's models, whose ``calculate_loss`` returns a mean."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from recbole.model.loss import BPRLoss, EmbLoss, EmbMarginLoss, RegLoss
from torch import Tensor, nn

from reweight._tensors import uninterrupted
from reweight.losses import Losses

REDUCTIONS = (nn.BCEWithLogitsLoss, nn.BCELoss, nn.CrossEntropyLoss, nn.MSELoss)
PENALTIES = (RegLoss, EmbLoss, EmbMarginLoss)
# The model and this module add the same float32 terms in another order. One sample of a thousand
# that was left out would already differ by more.
ROUNDING = 1e-4


class PerSampleLosses:
    """``(model, interaction) -> Losses`` for a model of RecBole.

    ``calculate_loss`` runs as it is. Meanwhile each loss module of the model returns a vector with
    one entry per sample and two more, for the penalties and for what neither of them computes. Sums
    and products with constants, which is what models make of these values, keep the entries apart.

    A model with a method ``losses(interaction) -> Losses`` is asked for that instead.

    Args:
        inputs: what the weighter reads: the name of a field, a function of the interaction, or
            ``None`` for the losses alone.

    Example:
        >>> import torch
        >>> from recbole.data.interaction import Interaction
        >>> class Dot(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.w, self.loss = torch.nn.Linear(1, 1), torch.nn.MSELoss()
        ...     def calculate_loss(self, interaction):
        ...         return 2 * self.loss(self.w(interaction["x"]).squeeze(1), interaction["y"])
        >>> batch = Interaction({"x": torch.rand(3, 1), "y": torch.rand(3)})
        >>> PerSampleLosses(inputs=None)(Dot(), batch).weighted.shape
        torch.Size([3])
    """

    def __init__(self, inputs: str | Callable[[Any], Any] | None) -> None:
        self.inputs = inputs

    def __call__(self, model: Any, interaction: Any) -> Losses:
        """The losses of one batch, ``weighted`` of shape [B].

        Raises:
            TypeError: the model's own ``losses`` returns something else.
            ValueError: the loss of this model can't be had per sample, or the field that the
                weighter reads is not there.
        """
        if callable(getattr(model, "losses", None)):
            own = model.losses(interaction)
            if not isinstance(own, Losses):
                raise TypeError(
                    f"{_name(model)}.losses(interaction) returned a {type(own).__name__}: return "
                    "reweight.Losses(per_sample, fixed=penalty)"
                )
            if self.inputs is None:
                return own
            return Losses(own.weighted, own.fixed, self._read(interaction))
        vector = _total(model, interaction)
        # Zeros in all models but those that add terms of their own; they count as fixed.
        rest = vector[-1]
        return Losses(vector[:-2] - rest, fixed=vector[-2], inputs=self._read(interaction))

    def verify(self, model: Any, interaction: Any) -> None:
        """Compare the losses of a batch with what the model itself returns.

        It changes no buffer and no random state of torch.

        Raises:
            ValueError: their mean and the fixed part are not the loss that the model computes.
        """
        with torch.no_grad():
            plain = _summed(_repeatable(model, lambda: model.calculate_loss(interaction)))
            parts = _repeatable(model, lambda: self(model, interaction))
        found = parts.weighted.mean() + parts.fixed
        if not torch.isclose(found, plain.reshape(()), rtol=ROUNDING, atol=0.0):
            raise _refusal(
                model,
                f"the mean of its per-sample losses is {found.item():.6g}, and calculate_loss "
                f"returns {plain.item():.6g}, so it weights, masks or transforms them",
            )
        rest = (
            0.0 if callable(getattr(model, "losses", None)) else self._unknown(model, interaction)
        )
        if rest:
            warnings.warn(
                f"{_name(model)}.calculate_loss adds a term ({rest:.3g} on the first batch) that "
                "no loss module of RecBole or torch computes. It stays without weights, which is "
                "right for a penalty on parameters and wrong for a loss of the samples. Give the "
                "model a method losses(interaction) -> reweight.Losses to say what it is.",
                stacklevel=2,
            )

    def _unknown(self, model: Any, interaction: Any) -> float:
        with torch.no_grad():
            return float(_repeatable(model, lambda: _total(model, interaction))[-1])

    def _read(self, interaction: Any) -> Any:
        if not isinstance(self.inputs, str):
            return None if self.inputs is None else self.inputs(interaction)
        if self.inputs not in interaction:
            raise ValueError(
                f"inputs={self.inputs!r} is not a field of the interaction, which has "
                f"{', '.join(interaction.columns)}: name one of these, or add it to load_col"
            )
        return interaction[self.inputs]


@uninterrupted
def _total(model: Any, interaction: Any) -> Tensor:
    """What ``calculate_loss`` makes of vectors [B + 2]: samples, penalties, neither."""
    rows, found = len(interaction), []

    def samples(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
        losses = _unreduced(module, args, kwargs)
        found.append(module)
        if losses.ndim == 0 or len(losses) != rows:
            raise _refusal(
                model,
                f"its {_name(module)} gets losses of shape {list(losses.shape)} for {rows} rows of "
                "the interaction",
            )
        each = losses if losses.ndim == 1 else losses.flatten(1).mean(1)
        return torch.cat([each, each.new_zeros(2)])

    def penalty(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
        return torch.cat([output.new_zeros(rows), output.reshape(1), output.new_zeros(1)])

    handles = []
    try:
        for module in model.modules():
            hook = samples if _reduces(module) else penalty if type(module) in PENALTIES else None
            if hook is not None:
                handles.append(module.register_forward_hook(hook, with_kwargs=True))
        total = _summed(model.calculate_loss(interaction))
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise _refusal(model, "no module of RecBole's or torch's losses is called in it")
    if total.shape != (rows + 2,):
        raise _refusal(model, "what its loss modules return is reduced once more")
    return total


def _reduces(module: nn.Module) -> bool:
    """Whether a module is a loss that returns the mean over samples."""
    if type(module) in REDUCTIONS:
        return getattr(module, "reduction", None) == "mean"
    return type(module) is BPRLoss


def _unreduced(module: Any, args: Any, kwargs: Any) -> Tensor:
    if isinstance(module, BPRLoss):
        positive, negative = args
        losses: Tensor = -(module.gamma + torch.sigmoid(positive - negative)).log()
        return losses
    each = copy.copy(module)
    each.reduction = "none"
    losses = each.forward(*args, **kwargs)
    return losses


@uninterrupted
def _repeatable(model: nn.Module, evaluate: Callable[[], Any]) -> Any:
    """Evaluate and put back buffers and random state, so that dropout repeats."""
    before = [buffer.clone() for buffer in model.buffers()]
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.is_cuda})
    with torch.random.fork_rng(devices):
        result = evaluate()
    for buffer, value in zip(model.buffers(), before, strict=True):
        buffer.copy_(value)
    return result


def _summed(losses: Tensor | tuple[Tensor, ...]) -> Tensor:
    """RecBole's models return a loss, or several that its trainer adds."""
    return sum(losses[1:], losses[0]) if isinstance(losses, tuple) else losses


def _name(model: nn.Module) -> str:
    return type(model).__name__


def _refusal(model: nn.Module, cause: str) -> ValueError:
    return ValueError(
        f"model: the loss of {_name(model)} can't be had per sample: {cause}. Give the model a "
        "method losses(interaction) that returns reweight.Losses(per_sample, fixed=penalty), with "
        f"one loss for each row of the interaction; it is used in place of calculate_loss."
    )
