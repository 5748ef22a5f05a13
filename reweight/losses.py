"""The losses of one batch, as a model returns them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from reweight._tensors import (
    NotFiniteError,
    Pending,
    described,
    ends,
    map_tensors,
    now_or_later,
    spread,
    tensors_in,
)


@dataclass(frozen=True)
class Losses:
    """The losses of one batch, before reduction.

    Args:
        weighted: ``[B]``, one loss per sample that gets a weight. ``B`` may differ from batch to
            batch, and may be 0.
        fixed: a scalar that is not reweighted: the loss of the domain or task that counts,
            an explicit penalty.
        inputs: what the weighter reads besides the losses, in any structure of tensors:
            embeddings, ids, groups. ``wrap`` detaches them.

    Raises:
        TypeError: ``weighted`` is not a floating-point tensor.
        ValueError: ``weighted`` is not one loss per sample, or ``fixed`` is not a scalar.

    Example:
        >>> import torch
        >>> Losses(torch.tensor([0.3, 0.9]), fixed=torch.tensor(0.5)).weighted.shape
        torch.Size([2])
    """

    weighted: Tensor
    fixed: Tensor | float = 0.0
    inputs: Any = None
    # What the losses were computed from, for Gauss-Newton products; see of().
    outputs: Any = field(default=None, init=False, repr=False, compare=False)

    @classmethod
    def of(
        cls,
        outputs: Any,
        loss_fn: Callable[[Any], Losses | Tensor],
        fixed: Tensor | float = 0.0,
        inputs: Any = None,
    ) -> Losses:
        """The losses as a function of the model's outputs.

        ``ImplicitHypergradient(curvature="gauss_newton")`` needs them in this form. Everything else
        sees the same losses as those that ``loss_fn(outputs)`` returns.

        Args:
            outputs: what the model computes, in any structure of tensors. For Gauss-Newton products
                the losses may depend on inner parameters only through these tensors.
            loss_fn: ``outputs -> [B]``, one loss per sample, or ``outputs -> Losses``, where a part
                of them is fixed. It is called once, with the same structure.
            fixed: added to what ``loss_fn`` has of it. A part that depends on inner parameters is
                refused by ``curvature="gauss_newton"``; return it from ``loss_fn`` instead.
            inputs: what the weighter reads besides the losses, unless ``loss_fn`` gives it.

        Raises:
            TypeError: ``outputs`` holds no floating-point tensor, or ``loss_fn`` returns neither a
                tensor nor ``Losses``.
            ValueError: ``outputs`` is an object that can't be copied, ``inputs`` are given twice,
                or losses as for the constructor.

        Example:
            >>> import torch
            >>> logits, labels = torch.tensor([[0.0, 0.0], [4.0, 0.0]]), torch.tensor([0, 1])
            >>> loss = torch.nn.CrossEntropyLoss(reduction="none")
            >>> Losses.of(logits, lambda logits: loss(logits, labels)).weighted
            tensor([0.6931, 4.0181])
        """
        uncopied: list[Any] = []
        seen = map_tensors(_seen, outputs, uncopied)
        if uncopied:
            kind = type(uncopied[0]).__name__
            raise ValueError(
                f"outputs holds a {kind}, of which no copy can be made because it owns a resource "
                "or a base class of it is written in C: pass its tensors in a tuple or a dict"
            )
        if not any(x.is_floating_point() for x in tensors_in(seen)):
            raise TypeError(
                f"outputs is {described(outputs)} and holds no floating-point tensor: pass what "
                "the model computes, before the loss: Losses.of(model(x), lambda out: ...)"
            )
        found: object = loss_fn(seen)
        if isinstance(found, Tensor):
            found = cls(found)
        if not isinstance(found, Losses):
            raise TypeError(
                "loss_fn(outputs) must return reweight.Losses or a tensor [B], got "
                f"{type(found).__name__}"
            )
        if inputs is not None and found.inputs is not None:
            raise ValueError(
                "inputs are given twice: by Losses.of(inputs=...) and by what loss_fn returns; "
                "give them in one place"
            )
        total = cls(
            found.weighted,
            found.fixed if isinstance(fixed, float) and fixed == 0.0 else found.fixed + fixed,
            found.inputs if inputs is None else inputs,
        )
        object.__setattr__(total, "outputs", seen)
        return total

    def __post_init__(self) -> None:
        weighted, fixed = self.weighted, self.fixed
        if not isinstance(weighted, Tensor) or not weighted.is_floating_point():
            kind = weighted.dtype if isinstance(weighted, Tensor) else type(weighted).__name__
            raise TypeError(f"losses.weighted must be a floating-point tensor [B], got {kind}")
        if weighted.ndim == 0:
            raise ValueError(
                "losses.weighted is a scalar: the loss was reduced already, so no weights per "
                'sample can be applied. Compute it with reduction="none" to keep one loss per '
                "sample"
            )
        if weighted.ndim > 1:
            raise ValueError(
                f"losses.weighted has shape {tuple(weighted.shape)}, expected [B]: one loss per "
                "sample. Average over the other dimensions, e.g. losses.flatten(1).mean(1)"
            )
        if isinstance(fixed, Tensor) and fixed.numel() != 1:
            raise ValueError(
                f"losses.fixed has shape {tuple(fixed.shape)}, expected a scalar: reduce it with "
                ".mean() or .sum(), or put losses that get weights into losses.weighted"
            )

    def __repr__(self) -> str:
        parts = (
            f"{name}={described(getattr(self, name))}" for name in ("weighted", "fixed", "inputs")
        )
        return f"Losses({', '.join(parts)})"

    def __str__(self) -> str:
        fixed = spread(torch.as_tensor(self.fixed)) or described(self.fixed)
        weighted = ": ".join(
            filter(None, (f"{self.weighted.numel()} weighted losses", spread(self.weighted)))
        )
        return f"{weighted}\nfixed: {fixed}; inputs: {described(self.inputs)}"

    def check_finite(self, pending: Pending | None = None) -> None:
        """Raise on a NaN or infinite loss. A weight of zero would not mask it: 0·NaN is NaN.

        Args:
            pending: look when this is read, and not now.
        """
        fixed = self.fixed
        scalars = [fixed.detach().reshape(())] if isinstance(fixed, Tensor) else []
        known = [] if scalars else [float(fixed)]

        def look(found: list[float]) -> None:
            if not all(map(math.isfinite, (*found, *known))):
                self._refuse()

        now_or_later(ends(self.weighted, *scalars), look, pending)

    def _refuse(self) -> None:
        """Raise with the samples whose loss is not finite."""
        fixed = torch.as_tensor(self.fixed)
        next_move = (
            "; look for NaN in the batch, an average over no samples, a learning rate that made "
            "the parameters overflow, or a logarithm of zero in the loss"
        )
        if not bool(fixed.isfinite().all()):
            raise NotFiniteError(f"losses.fixed is {fixed.item()}{next_move}")
        bad = (~self.weighted.isfinite()).nonzero().flatten().tolist()
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise NotFiniteError(
            f"losses.weighted is {self.weighted[bad[0]].item()} for sample "
            f"{', '.join(map(str, bad[:5]))}{more} of {len(self.weighted)}{next_move}"
        )


def _seen(x: Tensor) -> Tensor:
    """The tensor as the loss sees it, so that its gradient has no path through other outputs."""
    return x.view_as(x) if x.is_floating_point() else x
