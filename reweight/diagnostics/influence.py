"""A ranking of samples by their influence on the dev loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class InfluenceRanking:
    """The most helpful and the most harmful samples, for ``print``.

    Attributes:
        helpful: ``(id, influence)`` of samples with influence below zero, most helpful first.
        harmful: ``(id, influence)`` of samples with influence above zero, most harmful first.
        num_helpful: the number of samples with influence below zero.
        size: the number of samples.
    """

    helpful: tuple[tuple[Any, float], ...]
    harmful: tuple[tuple[Any, float], ...]
    num_helpful: int
    size: int

    def __str__(self) -> str:
        lines = [
            f"{self.num_helpful} of {self.size} samples help the dev loss (influence below zero)"
        ]
        for title, rows in (("most helpful", self.helpful), ("most harmful", self.harmful)):
            lines.append(title)
            width = max((len(str(name)) for name, _ in rows), default=0)
            lines += [f"  {name!s:>{width}}  {value:+.3e}" for name, value in rows] or ["  none"]
        return "\n".join(lines)


def rank_influence(
    influence: Tensor, ids: Sequence[Any] | Tensor | None = None, k: int = 10
) -> InfluenceRanking:
    """Rank the samples of a batch by ``result.influence``.

    Args:
        influence: ``[B]``, the derivative of the dev loss with respect to each sample's weight. If
            it is below zero, a larger weight of this sample decreases the dev loss.
        ids: ``[B]``, names of the samples; default: their positions in the batch.
        k: the largest number of helpful and of harmful samples to return.

    Raises:
        TypeError: ``influence`` is not a tensor.
        ValueError: ``influence`` is not of shape ``[B]`` or not finite, ``ids`` has another length,
            or ``k`` is below 1.

    Example:
        >>> import torch
        >>> print(rank_influence(torch.tensor([0.2, -0.1, 0.0]), ids=["a", "b", "c"]))
        1 of 3 samples help the dev loss (influence below zero)
        most helpful
          b  -1.000e-01
        most harmful
          a  +2.000e-01
    """
    if not isinstance(influence, Tensor):
        raise TypeError(
            f"influence must be a tensor [B], got {type(influence).__name__}: pass "
            "result.influence of rw.hypergradient or rw.outer_backward"
        )
    if influence.ndim != 1:
        raise ValueError(
            f"influence has shape {tuple(influence.shape)}, expected [B]: pass "
            "result.influence of rw.hypergradient or rw.outer_backward"
        )
    if not bool(influence.isfinite().all()):
        raise ValueError(
            "influence is not finite: pass the result.influence of rw.hypergradient or "
            "rw.outer_backward, whose entries are finite"
        )
    if k < 1:
        raise ValueError(f"k={k}: k must be at least 1")
    names = range(len(influence)) if ids is None else ids
    if len(names) != len(influence):
        raise ValueError(
            f"there are {len(names)} ids for {len(influence)} influences: pass one id for each "
            "sample of the batch"
        )
    if isinstance(names, Tensor):
        names = names.tolist()
    values = influence.detach().double().cpu()
    # Stable, so that samples of equal influence stay in the order of the batch.
    rising, falling = values.argsort(stable=True), values.argsort(stable=True, descending=True)

    def rows(order: Tensor, sign: float) -> tuple[tuple[Any, float], ...]:
        ends = ((names[i], float(values[i])) for i in order[:k].tolist())
        return tuple((name, value) for name, value in ends if sign * value > 0.0)

    return InfluenceRanking(
        rows(rising, -1.0), rows(falling, 1.0), int((values < 0.0).sum()), len(values)
    )
