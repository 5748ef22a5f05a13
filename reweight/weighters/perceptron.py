"""BIAO's behavioral perceptron."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from reweight.weighters._attention import PooledAttention
from reweight.weighters._histories import Histories, HistorySlices, Padded, Sliced
from reweight.weighters._mlp import mlp
from reweight.weighters._positive import positive
from reweight.weighters._whole_batch import whole_batch
from reweight.weighters.base import SampleWeighter


class BehaviorInputs(NamedTuple):
    """Inputs of the behavioral perceptron for B source-domain behaviours.

    The embeddings usually come from the tables of the recommendation model. The two histories may
    have different lengths N. Padding may be at any position. Many histories at once, such as all of
    a data set, are cheaper as slices of one list.

    Attributes:
        item: Embeddings E_s of the candidate items, all feature fields concatenated, [B, D].
        source_history: Embeddings of the user's recent source-domain items, [B, N, D], or
            :class:`HistorySlices`.
        target_history: The same of the user's recent target-domain items.
        source_mask: True for a real behaviour, False for padding, [B, N], bool; None for slices.
        target_mask: The same for the target history.
    """

    item: Tensor
    source_history: Tensor | HistorySlices
    target_history: Tensor | HistorySlices
    source_mask: Tensor | None = None
    target_mask: Tensor | None = None


class BehavioralPerceptron(SampleWeighter):
    r"""Weights of source behaviours, from the item alone and from the user's history (BIAO).

    It implements Eq. 3–8 of Chen et al., "Cross-domain Recommendation with Behavioral Importance
    Perception", WWW'23, for a candidate item with embedding :math:`E_s`:

    .. math::

        \gamma_1 &= b + \mathrm{MLP}(E_s) \\
        m_S &= \operatorname{mean}_i \mathrm{MHA}_S([e^i_S ; E_s]), \qquad
        m_T = \operatorname{mean}_i \mathrm{MHA}_T([e^i_T ; E_s]) \\
        \gamma_2 &= \mathrm{MLP}([m_S ; m_T]) \\
        \text{weight} &= \gamma \cdot \sigma(\gamma_1 \gamma_2)

    All weights are exactly 1 at the start: γ is 1, and the last layer of the local MLP (or of the
    global MLP, if there is no local branch) is initialized to zero. If γ_1 were zero too, the
    product γ_1·γ_2 would be at a saddle point, where both gradients are zero. The constant b
    (``global_bias``, which the paper does not have) avoids this.

    Args:
        dim: Width D of the item embeddings.
        num_heads: Heads of each attention; must divide 2·D. The paper uses 4.
        hidden: Width of the hidden layer in both MLPs.
        global_hidden: Hidden widths of the global MLP if different; ``()`` for one linear layer.
        local_hidden: Hidden widths of the local MLP if different.
        use_global: Use the global branch. Without it the score is γ_2.
        use_local: Use the user-specific branch. Without it the score is MLP(E_s), and
            ``global_bias`` is not used.
        normalization: σ in Eq. 8. ``"sigmoid"``: 2·sigmoid(score), independent of the batch.
            ``"centered"``: 2·sigmoid(score − batch mean), so that a score compares a sample with
            its batch and γ sets the overall level; bounded by 2γ. ``"softmax"``:
            B·softmax(scores) over the batch, so that the mean weight is γ and a sample's weight
            depends on its batch. (In the authors' code the weights sum to γ and the losses are
            summed, which equals ``reduction="mean"`` here.)
        global_bias: The constant b.
        mask_keys: Leave padding out of the attention and of the mean. A history without a real
            behaviour is treated as one behaviour of zeros, so the weight of a user's first
            behaviours still depends on their items. False, as in the authors' code: padding is
            attended to, and the mean divides by N.
        gamma_map: Which function keeps γ from becoming negative. ``"softplus"``: γ is always
            positive, and weight decay pulls it to 1. ``"relu"``, as in the authors' code: weight
            decay pulls γ to 0, and it stays there.

    Attributes:
        raw_gamma: The unconstrained parameter of :attr:`gamma`.

    Raises:
        ValueError: If an argument is out of range, ``num_heads`` does not divide 2·D, or both
            branches are disabled.

    Note:
        The authors' released code is ``BehavioralPerceptron(20, global_hidden=(),
        local_hidden=(32, 16), normalization="softmax", global_bias=0.0, mask_keys=False,
        gamma_map="relu")``, except that the last layer is initialized to zero.

    Example:
        >>> import torch
        >>> from reweight.weighters import BehavioralPerceptron, BehaviorInputs
        >>> perceptron = BehavioralPerceptron(dim=16)
        >>> inputs = BehaviorInputs(
        ...     item=torch.randn(3, 16),
        ...     source_history=torch.randn(3, 20, 16),
        ...     target_history=torch.randn(3, 5, 16),
        ...     source_mask=torch.rand(3, 20) < 0.5,
        ...     target_mask=torch.zeros(3, 5, dtype=torch.bool),  # no history yet: allowed
        ... )
        >>> perceptron(torch.rand(3), inputs).tolist()
        [1.0, 1.0, 1.0]
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 4,
        hidden: int = 32,
        global_hidden: Sequence[int] | None = None,
        local_hidden: Sequence[int] | None = None,
        use_global: bool = True,
        use_local: bool = True,
        normalization: Literal["sigmoid", "centered", "softmax"] = "sigmoid",
        global_bias: float = 1.0,
        mask_keys: bool = True,
        gamma_map: Literal["softplus", "relu"] = "softplus",
    ) -> None:
        super().__init__()
        global_hidden = (hidden,) if global_hidden is None else tuple(global_hidden)
        local_hidden = (hidden,) if local_hidden is None else tuple(local_hidden)
        _check_positive(dim=(dim,), global_hidden=global_hidden, local_hidden=local_hidden)
        _check_choice("normalization", normalization, ("sigmoid", "centered", "softmax"))
        _check_choice("gamma_map", gamma_map, ("softplus", "relu"))
        if not (use_global or use_local):
            raise ValueError(
                "use_global=False and use_local=False: at least one branch is needed. For γ alone "
                "use ConstantWeighter."
            )
        if use_local and (num_heads < 1 or 2 * dim % num_heads):
            divisors = [n for n in range(1, 2 * dim + 1) if 2 * dim % n == 0]
            raise ValueError(
                f"num_heads={num_heads!r} does not divide the attention's width 2·dim = {2 * dim} "
                f"(behaviour and candidate concatenated). Choose one of {divisors}."
            )
        self.dim = dim
        self.normalization = normalization
        self.mask_keys = mask_keys
        self.gamma_map = gamma_map
        self.global_bias = global_bias if use_local else 0.0
        self.global_mlp: nn.Sequential | None = None
        self.local_mlp: nn.Sequential | None = None
        if use_global:
            self.global_mlp = mlp(dim, global_hidden, zero_last=not use_local)
        if use_local:
            self.source_attention = PooledAttention(dim, num_heads)
            self.target_attention = PooledAttention(dim, num_heads)
            self.local_mlp = mlp(4 * dim, local_hidden, zero_last=True)
        self.raw_gamma = nn.Parameter(torch.tensor(0.0 if gamma_map == "softplus" else 1.0))

    @property
    def gamma(self) -> Tensor:
        """The global scalar γ of Eq. 8, shape []."""
        return positive(self.raw_gamma) if self.gamma_map == "softplus" else self.raw_gamma.relu()

    @property
    def bounds(self) -> tuple[float, float] | None:  # type: ignore[override]
        """``(0, 2γ)``; ``None`` with ``"softmax"``, where the batch size is part of the bound."""
        return None if self.normalization == "softmax" else (0.0, 2.0 * float(self.gamma.detach()))

    @property
    def compares_samples(self) -> bool:  # type: ignore[override]
        """Whether a weight depends on the other samples of the batch."""
        return self.normalization != "sigmoid"

    def forward(self, losses: Tensor, inputs: BehaviorInputs) -> Tensor:
        """Weight every source behaviour.

        Args:
            losses: Per-sample losses, shape [B]; only the shape is used.
            inputs: The behaviours, their items and their users' histories.

        Returns:
            Weights, shape [B], in the perceptron's dtype.

        Raises:
            TypeError: If ``inputs`` is not a ``BehaviorInputs`` or a mask is not bool.
            ValueError: If a shape does not fit.
        """
        scores = self.scores(inputs)
        if scores.shape != losses.shape:
            raise ValueError(
                f"inputs.item describes {scores.shape[0]} behaviours, but losses has shape "
                f"{list(losses.shape)}. Return Losses(weighted, inputs=...) with the losses and "
                "the items of the same source behaviours, one loss per behaviour."
            )
        return self.normalize(scores)

    def normalize(self, scores: Tensor) -> Tensor:
        """The weights of one batch from its scores: γ · σ(scores), Eq. 8.

        With ``"sigmoid"`` a weight depends on its own score only. With ``"centered"`` and
        ``"softmax"`` it depends on the batch. To weight several batches, call :meth:`scores` once
        for all of them, and this for each.

        Args:
            scores: Scores of :meth:`scores`, shape [B].

        Returns:
            Weights, shape [B].

        Example:
            >>> import torch
            >>> from reweight.weighters import BehavioralPerceptron
            >>> perceptron = BehavioralPerceptron(dim=4, normalization="softmax")
            >>> perceptron.normalize(torch.zeros(3)).tolist()
            [1.0, 1.0, 1.0]
        """
        if self.normalization == "softmax":
            scores, own = whole_batch(scores)
            return self.gamma * scores.shape[0] * scores.softmax(0)[own]
        if self.normalization == "centered":
            all_scores, _ = whole_batch(scores)
            scores = scores - all_scores.sum() / max(len(all_scores), 1)
        return self.gamma * 2.0 * scores.sigmoid()

    def scores(self, inputs: BehaviorInputs) -> Tensor:
        """The scores γ_1 · γ_2 of Eq. 8, before normalization.

        Unlike weights with ``"centered"`` or ``"softmax"``, they do not depend on the rest of the
        batch, so they can be exported and compared, and made for several batches in one call.

        Args:
            inputs: The behaviours, their items and their users' histories.

        Returns:
            Scores, shape [B], in the perceptron's dtype.

        Raises:
            TypeError: If ``inputs`` is not a ``BehaviorInputs`` or a mask is not bool.
            ValueError: If a shape does not fit.
        """
        self._check(inputs)
        dtype = self.raw_gamma.dtype
        item = inputs.item.to(dtype)
        score: Tensor | None = None
        if self.global_mlp is not None:
            score = self.global_bias + self.global_mlp(item).squeeze(-1)
        if self.local_mlp is not None:
            source = self.source_attention(
                item, self._histories(inputs.source_history, inputs.source_mask)
            )
            target = self.target_attention(
                item, self._histories(inputs.target_history, inputs.target_mask)
            )
            local = self.local_mlp(torch.cat((source, target), dim=-1)).squeeze(-1)
            score = local if score is None else score * local
        assert score is not None
        return score

    def _histories(self, history: Tensor | HistorySlices, mask: Tensor | None) -> Histories:
        dtype = self.raw_gamma.dtype
        if isinstance(history, HistorySlices):
            return Sliced(history._replace(behaviors=history.behaviors.to(dtype)))
        assert mask is not None
        return Padded(history.to(dtype), mask, self.mask_keys)

    def extra_repr(self) -> str:
        """The constructor arguments that decide about its inputs and its weights."""
        return f"dim={self.dim}, normalization={self.normalization!r}"

    def _check(self, inputs: BehaviorInputs) -> None:
        if not isinstance(inputs, BehaviorInputs):
            raise TypeError(
                f"inputs must be a BehaviorInputs, got {type(inputs).__name__}. Return "
                "Losses(weighted, fixed, inputs=BehaviorInputs(item, source_history, "
                "target_history, source_mask, target_mask)) from your losses function."
            )
        item = inputs.item
        if item.ndim != 2 or item.shape[1] != self.dim:
            raise ValueError(
                f"inputs.item has shape {list(item.shape)}, expected [B, {self.dim}]: the "
                f"perceptron was built with dim={self.dim}. dim is the width of all feature "
                "embeddings of the item, concatenated."
            )
        if self.local_mlp is None:
            return
        for domain, history, mask in (
            ("source", inputs.source_history, inputs.source_mask),
            ("target", inputs.target_history, inputs.target_mask),
        ):
            if isinstance(history, HistorySlices):
                self._check_slices(domain, history, mask, len(item))
            else:
                _check_padded(domain, history, mask, item)

    def _check_slices(
        self, domain: str, slices: HistorySlices, mask: Tensor | None, num: int
    ) -> None:
        if not self.mask_keys:
            raise ValueError(
                f"inputs.{domain}_history is given as slices, which have no padding, and this "
                "perceptron attends to padding (mask_keys=False). Give histories [B, N, D] and "
                "masks instead."
            )
        if mask is not None:
            raise ValueError(
                f"inputs.{domain}_mask has shape {list(mask.shape)}, but inputs.{domain}_history "
                "is given as slices, in which every behaviour is real: leave the mask out."
            )
        behaviors, start, length = slices
        if behaviors.ndim != 2 or behaviors.shape[1] != self.dim:
            raise ValueError(
                f"inputs.{domain}_history.behaviors has shape {list(behaviors.shape)}, expected "
                f"[P, {self.dim}]: one embedding of the candidate's width per behaviour."
            )
        for name, values in (("start", start), ("length", length)):
            if values.shape != (num,) or values.dtype != torch.int64:
                raise ValueError(
                    f"inputs.{domain}_history.{name} has shape {list(values.shape)} and dtype "
                    f"{values.dtype}, expected [{num}] and torch.int64: one history per row of "
                    "inputs.item."
                )
        outside = (start < 0) | (length < 0) | (start + length > len(behaviors))
        if outside.any():
            row = int(outside.int().argmax())
            raise ValueError(
                f"inputs.{domain}_history: the slice of row {row} starts at {int(start[row])} and "
                f"has {int(length[row])} behaviours, but there are {len(behaviors)}: start and "
                "length count rows of behaviors."
            )


def _check_padded(domain: str, history: Tensor, mask: Tensor | None, item: Tensor) -> None:
    if history.ndim != 3 or history.shape[::2] != item.shape:
        raise ValueError(
            f"inputs.{domain}_history has shape {list(history.shape)}, expected "
            f"[{item.shape[0]}, N, {item.shape[1]}]: one history per row of inputs.item, with "
            "embeddings of the same width as the candidate's."
        )
    if mask is None:
        raise ValueError(
            f"inputs.{domain}_mask is None, but inputs.{domain}_history is a tensor of shape "
            f"{list(history.shape)}: give a mask [B, N] with True for a real behaviour. Only "
            "HistorySlices have none."
        )
    if mask.dtype != torch.bool:
        raise TypeError(
            f"inputs.{domain}_mask has dtype {mask.dtype}, expected torch.bool with True "
            "for a real behaviour. If padding has id 0, use mask = ids != 0."
        )
    if mask.shape != history.shape[:2]:
        raise ValueError(
            f"inputs.{domain}_mask has shape {list(mask.shape)}, expected "
            f"{list(history.shape[:2])}: one entry per position of {domain}_history."
        )


def _check_positive(**widths: Sequence[int]) -> None:
    for name, values in widths.items():
        if any(value < 1 for value in values):
            raise ValueError(f"{name}: every width must be at least 1, got {list(values)}.")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r}: choose one of {', '.join(map(repr, choices))}.")
