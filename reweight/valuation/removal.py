"""Trainings without the worst, random and the best samples: evidence for a ranking."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from reweight.valuation._ids import Ids, as_ids, named
from reweight.valuation._removal_plot import plot_curve
from reweight.valuation.values import Floats

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Way = Literal["worst first", "at random", "best first"]
WAYS: tuple[Way, ...] = ("worst first", "at random", "best first")


@dataclass(frozen=True, eq=False)
class RemovalCurve:
    """The scores of :func:`removal_curve`, for ``print``.

    Attributes:
        shares: ``[K]``, the removed shares.
        kept: ``[K]``, the numbers of samples left.
        seeds: ``[S]``.
        scores: way of removal -> ``[S, K]``.
    """

    shares: tuple[float, ...]
    kept: tuple[int, ...]
    seeds: tuple[int, ...]
    scores: dict[Way, Floats]

    def mean(self, way: Way) -> Floats:
        """``[K]``, the mean score over the seeds."""
        mean: Floats = self.scores[way].mean(axis=0)
        return mean

    def standard_error(self, way: Way) -> Floats:
        """``[K]``, the standard error of :meth:`mean`; NaN with one seed."""
        return _standard_error(self.scores[way])

    def gain(self) -> tuple[Floats, Floats]:
        """``[K]`` each: the score of "worst first" minus that of "at random", and its error.

        The difference is taken seed by seed, and its standard error is that of the mean over seeds.
        """
        difference = self.scores["worst first"] - self.scores["at random"]
        return difference.mean(axis=0), _standard_error(difference)

    def __str__(self) -> str:
        heads = [*WAYS, "worst - random"]
        lines = [f"{'removed':>7}  {'kept':>7}  " + "  ".join(f"{head:>16}" for head in heads)]
        columns = [(self.mean(way), self.standard_error(way)) for way in WAYS]
        gain = self.gain()
        for k, (share, kept) in enumerate(zip(self.shares, self.kept, strict=True)):
            cells = [_cell(mean[k], error[k]) for mean, error in columns]
            cells.append(_cell(gain[0][k], gain[1][k], "+") if len(self._alike(k)) > 1 else "")
            row = "  ".join(f"{cell:>16}" for cell in cells)
            lines.append(f"{100 * share:5.0f} %  {kept:>7}  {row}".rstrip())
        count = len(self.seeds)
        lines.append(
            f"mean ± standard error over {count} seeds"
            if count > 1
            else "one seed: differences between columns may be chance; pass seeds=range(5)"
        )
        return "\n".join(lines)

    def _alike(self, k: int) -> set[bytes]:
        return {self.scores[way][:, k].tobytes() for way in WAYS}

    def plot(self, path: str | Path | None = None, *, score: str = "score") -> Figure:
        """Scores over the removed share, with one standard error to each side.

        Args:
            path: also write the plot to this file; the extension selects the format.
            score: the name of the score, for the axis.

        Raises:
            ImportError: matplotlib is not installed.
        """
        curves: dict[str, tuple[Floats, Floats]] = {
            way: (self.mean(way), self.standard_error(way)) for way in WAYS
        }
        return plot_curve(self.shares, curves, len(self.seeds), score, path)


def removal_curve(
    train_and_score: Callable[[Ids, int], float],
    worst_first: Any,
    *,
    shares: Sequence[float] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5),
    seeds: Sequence[int] = (0, 1, 2),
) -> RemovalCurve:
    """Train without a share of the samples: the worst of a ranking, random ones, the best.

    A ranking that means something gives three separate curves: without its worst samples the score
    is above that without random ones, and without its best samples below. The score must come from
    samples that did not serve to make the ranking, or it proves nothing.

    It takes ``len(seeds) · (3·len(shares) - 2)`` trainings, where 0 is one of the shares.

    Args:
        train_and_score: ``(ids, seed) -> score``: trains a new model on the samples ``ids``
            (sorted) and returns its score, the higher the better. The seed is for all
            that is random in it.
        worst_first: ``[N]``, the ids in the order of removal, as
            :meth:`SampleValues.worst_first` returns them, or the ranking of any other method. Or a
            function ``seed -> ids``, where each seed has a search of its own: only then do the
            standard errors include the chance in the ranking.
        shares: what to remove of all samples, at least 0 and below 1, ascending.
        seeds: one training for each, and one order of random removal.

    Raises:
        ValueError: ids that stand twice, shares or seeds that make no sense, a share that leaves no
            sample, a score that is not finite.

    Example:
        The score is the share of even numbers; the ranking has all odd numbers first.

        >>> from reweight.valuation import removal_curve
        >>> curve = removal_curve(lambda ids, seed: float((ids % 2 == 0).mean()),
        ...                       [1, 3, 5, 7, 0, 2, 4, 6], shares=(0, 0.5), seeds=range(4))
        >>> print(curve)
        removed     kept       worst first         at random        best first    worst - random
            0 %        8     0.500 ± 0.000     0.500 ± 0.000     0.500 ± 0.000
           50 %        4     1.000 ± 0.000     0.438 ± 0.062     0.000 ± 0.000    +0.562 ± 0.062
        mean ± standard error over 4 seeds
    """
    seeds = tuple(seeds)
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds={seeds!r}: pass one or more different integers")
    orders = [_order(worst_first(seed) if callable(worst_first) else worst_first) for seed in seeds]
    if len(sizes := sorted(set(map(len, orders)))) > 1:
        raise ValueError(f"worst_first: the seeds rank {sizes} samples, and must rank equally many")
    removed = _removed(shares, sizes[0])
    scores: dict[Way, Floats] = {way: np.empty((len(seeds), len(removed))) for way in WAYS}
    for s, (seed, order) in enumerate(zip(seeds, orders, strict=True)):
        # Of the sorted ids, so that two rankings are compared with the same random removal.
        shuffled = np.random.default_rng(seed).permutation(np.sort(order))
        ways: dict[Way, Ids] = dict(zip(WAYS, (order, shuffled, order[::-1]), strict=True))
        whole: float | None = None
        for k, count in enumerate(removed):
            for way, sequence in ways.items():
                if count == 0 and whole is not None:
                    scores[way][s, k] = whole
                    continue
                kept = np.sort(sequence[count:])
                score = scores[way][s, k] = _scored(train_and_score, kept, seed, way)
                whole = score if count == 0 else whole
    kept_counts = tuple(sizes[0] - count for count in removed)
    return RemovalCurve(tuple(map(float, shares)), kept_counts, seeds, scores)


def _order(worst_first: Any) -> Ids:
    order = as_ids(worst_first, "worst_first")
    names, counts = np.unique(order, return_counts=True)
    if len(names) != len(order):
        raise ValueError(f"worst_first: {named(names[counts > 1])} stand more than once")
    return order


def _removed(shares: Sequence[float], size: int) -> list[int]:
    if not len(shares) or any(not 0.0 <= share < 1.0 for share in shares):
        raise ValueError(f"shares={tuple(shares)!r}: each must be at least 0 and below 1")
    removed = [int(share * size + 0.5) for share in shares]
    if any(later <= earlier for earlier, later in zip(removed, removed[1:], strict=False)):
        raise ValueError(
            f"shares={tuple(shares)!r}: they must rise, and each remove more of the {size} samples"
        )
    if removed[-1] >= size:
        raise ValueError(f"shares={tuple(shares)!r}: {shares[-1]} leaves none of {size} samples")
    return removed


def _scored(train_and_score: Callable[[Ids, int], float], ids: Ids, seed: int, way: str) -> float:
    score = float(train_and_score(ids, seed))
    if not math.isfinite(score):
        raise ValueError(
            f"train_and_score returned {score} for {len(ids)} samples, seed {seed}, removal "
            f"{way!r}: did the training diverge, or was the score taken over no samples?"
        )
    return score


def _standard_error(scores: Floats) -> Floats:
    if len(scores) < 2:
        return np.full(scores.shape[1], math.nan)
    error: Floats = scores.std(axis=0, ddof=1) / math.sqrt(len(scores))
    return error


def _cell(mean: float, error: float, sign: str = "") -> str:
    return f"{mean:{sign}.3f}" + ("" if math.isnan(error) else f" ± {error:.3f}")
