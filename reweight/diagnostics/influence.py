"""Which samples help the dev loss, and which harm it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class InfluenceRanking:
    """The ends of a ranking of samples; ``print`` it.

    Attributes:
        helpful: ``(id, influence)`` of samples below zero, the most helpful first.
        harmful: ``(id, influence)`` of samples above zero, the most harmful first.
        num_helpful: how many samples of the batch help.
        size: how many samples there are.
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
    """The samples at both ends of ``result.influence``.

    Args:
        influence: ``[B]``, the derivative of the dev loss by each sample's weight: below zero, more
            of this sample helps.
        ids: ``[B]``, what to call the samples; default their position in the batch.
        k: how many of each end, at most.

    Raises:
        TypeError: an influence that is not a tensor.
        ValueError: an influence that is not ``[B]`` or not finite, ids of another length, ``k``
            below 1.

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
            f"influence must be a tensor [B], got {type(influence).__name__}: hand over "
            "result.influence of rw.hypergradient or rw.outer_backward"
        )
    if influence.ndim != 1:
        raise ValueError(
            f"influence has shape {tuple(influence.shape)}, expected [B]: hand over "
            "result.influence of rw.hypergradient or rw.outer_backward"
        )
    if not bool(influence.isfinite().all()):
        raise ValueError("influence is not finite: rank one that rw.hypergradient returned")
    if k < 1:
        raise ValueError(f"k={k}: ask for at least one sample of each end")
    names = range(len(influence)) if ids is None else ids
    if len(names) != len(influence):
        raise ValueError(
            f"there are {len(names)} ids for {len(influence)} influences: ids names the samples "
            "of the same batch"
        )
    if isinstance(names, Tensor):
        names = names.tolist()
    values = influence.detach().double().cpu()
    # Stable, so that ties keep the order of the batch at both ends.
    rising, falling = values.argsort(stable=True), values.argsort(stable=True, descending=True)

    def rows(order: Tensor, sign: float) -> tuple[tuple[Any, float], ...]:
        ends = ((names[i], float(values[i])) for i in order[:k].tolist())
        return tuple((name, value) for name, value in ends if sign * value > 0.0)

    return InfluenceRanking(
        rows(rising, -1.0), rows(falling, 1.0), int((values < 0.0).sum()), len(values)
    )
