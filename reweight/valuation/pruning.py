"""The best share of the training samples."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from reweight.valuation._ids import Ids, named
from reweight.valuation.values import By, SampleValues

_SHOWN = 20  # strata that are printed


@dataclass(frozen=True, eq=False)
class Pruned:
    """What :func:`prune` kept, for ``print``.

    Attributes:
        ids: the kept ids, ascending.
        counts: stratum -> (samples kept, samples before). Without strata there is one, ``"all"``.
        tied: how many samples were left out although a kept sample of their stratum is as good.
    """

    ids: Ids
    counts: dict[Any, tuple[int, int]]
    tied: int

    def __str__(self) -> str:
        width = max([len("stratum"), *(len(str(name)) for name in self.counts)])
        lines = [f"{'stratum':<{width}}  {'kept':>8}  {'of':>8}"]
        rows = [f"{name!s:<{width}}  {k:>8}  {n:>8}" for name, (k, n) in self.counts.items()]
        lines += rows[:_SHOWN]
        if len(rows) > _SHOWN:
            lines.append(f"and {len(rows) - _SHOWN} more strata")
        if self.tied:
            lines.append(
                f"{self.tied} samples that were left out are as good as a kept one: the lowest ids "
                "were kept"
            )
        return "\n".join(lines)


def prune(values: SampleValues, share: float, *, strata: Any = None, by: By = "weight") -> Pruned:
    """Keep the best share of the samples, of each stratum alike.

    Without strata, a class that the model finds hard can vanish, since its samples may all have
    small weights. With class labels as strata, the same share of each class is kept, rounded, and
    at least one sample. Of samples with equal values, those with the lowest ids are kept.

    Args:
        values: what :func:`collect` returned.
        share: how much to keep, above 0 and at most 1.
        strata: ``[N]``, the stratum of each sample (integers or strings), in the order of
            ``values.ids``.
        by: ``"weight"``: the largest are best; ``"influence"``: the smallest are best.

    Raises:
        ValueError: a ``share`` outside of its range, strata of another number, no influence.

    Warns:
        UserWarning: all values of a stratum are equal, so that the ids alone decide.

    Example:
        >>> from reweight.valuation import SampleValues, prune
        >>> values = SampleValues([0, 1, 2, 3, 4, 5], [0.1, 1.9, 1.5, 0.3, 0.2, 0.1])
        >>> kept = prune(values, 0.5, strata=["cat", "cat", "cat", "cat", "dog", "dog"])
        >>> kept.ids.tolist()
        [1, 2, 4]
        >>> print(kept)
        stratum      kept        of
        cat             2         4
        dog             1         2
    """
    if not 0.0 < share <= 1.0:
        raise ValueError(
            f"share={share!r}: the share of the samples to keep is above 0 and at most 1"
        )
    if not len(values):
        return Pruned(values.ids, {}, 0)
    goodness = values.goodness(by)
    strata_names, group, counts = values.grouped(
        ["all"] * len(values) if strata is None else strata
    )
    # The best of each stratum first. The sort is stable, and rows ascend with ids.
    order = np.lexsort((-goodness, group))
    group, goodness = group[order], goodness[order]
    starts = np.cumsum(counts) - counts
    sizes = np.maximum(1, (share * counts + 0.5).astype(np.int64))
    keep = np.arange(len(order)) - starts[group] < sizes[group]
    alike = goodness[starts] == goodness[starts + counts - 1]
    if (undecided := alike & (sizes < counts)).any():
        warnings.warn(
            f"values: all samples have the same {by} in {int(undecided.sum())} of {len(counts)} "
            f"strata ({named(strata_names[undecided])}), so that the lowest ids were kept. Nothing "
            "was learned about them, or all weights are at a bound",
            stacklevel=2,
        )
    cut = goodness[starts + sizes - 1]
    sizes_of = zip(strata_names.tolist(), sizes.tolist(), counts.tolist(), strict=True)
    return Pruned(
        np.sort(values.ids[order[keep]]),
        {name: (size, count) for name, size, count in sizes_of},
        int((goodness[~keep] == cut[group[~keep]]).sum()),
    )
