"""Whether a difference between two variants is more than chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from cdr.report.uncertainty import confidence_interval, smallest_detectable, standard_error
from cdr.training import Scores

_RESAMPLES = 1000


@dataclass(frozen=True)
class Comparison:
    """Mean AUC difference of two variants over paired seeds.

    Attributes:
        difference: mean over seeds.
        p_value: of the paired t-test over seeds; None for a single seed, or where all differences
            are zero.
        low: lower end of the 95 % interval over resampled users.
        high: upper end.
        error: standard error over seeds and users together, see
            :func:`cdr.report.uncertainty.standard_error`.
    """

    difference: float
    p_value: float | None
    low: float
    high: float
    error: float

    @property
    def detectable(self) -> float:
        """The smallest gain that would have been found."""
        return smallest_detectable(self.error)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval over seeds and users together."""
        return confidence_interval(self.difference, self.error)


def compare(ours: Sequence[Scores], base: Sequence[Scores], seed: int = 0) -> Comparison:
    """Compare the predictions of two variants seed by seed, on the same rows.

    The t-test asks whether another seed would show the difference again; the bootstrap, which
    resamples users with all their rows, whether other users would. The standard error is of both.
    """
    num_users = int(max(scores.user.max() for scores in ours)) + 1
    once = np.ones(num_users, dtype=np.int64)
    pairs = list(zip(ours, base, strict=True))
    differences = [_Ranked(a).auc(once) - _Ranked(b).auc(once) for a, b in pairs]
    samples = np.mean(
        [_resampled(a, num_users, seed) - _resampled(b, num_users, seed) for a, b in pairs], axis=0
    )
    low, high = np.nanquantile(samples, (0.025, 0.975))
    p_value = paired_p_value(differences)
    error = standard_error(ours, base)
    return Comparison(float(np.mean(differences)), p_value, float(low), float(high), error)


def paired_p_value(differences: Sequence[float]) -> float | None:
    """Of the paired t-test over seeds; None for a single seed, or where all are zero."""
    # Not scipy.stats, whose import takes longer than a table.
    from scipy.special import stdtr

    num = len(differences)
    if num < 2 or not any(differences):
        return None
    error = float(np.std(differences, ddof=1)) / np.sqrt(num)
    if error == 0.0:
        return 0.0
    return float(2 * stdtr(num - 1, -abs(float(np.mean(differences))) / error))


@lru_cache(maxsize=1)
def _draws(num_users: int, seed: int) -> NDArray[np.uint8]:
    """How often each resample [resamples, users] has each user; a byte is more than enough."""
    rng = np.random.default_rng(seed)
    counts = np.empty((_RESAMPLES, num_users), dtype=np.uint8)
    for row in counts:
        row[:] = np.bincount(rng.integers(num_users, size=num_users), minlength=num_users)
    return counts


@lru_cache(maxsize=256)
def _resampled(scores: Scores, num_users: int, seed: int) -> NDArray[np.float64]:
    """The AUC on each resample, kept: the variants of a table are compared with the same base."""
    ranked = _Ranked(scores)
    return np.array([ranked.auc(times.astype(np.int64)) for times in _draws(num_users, seed)])


class _Ranked:
    """Scores sorted once, so that a resample costs two passes.

    Counts are integers: their sums are exact, and no threads are started for their product.
    """

    def __init__(self, scores: Scores) -> None:
        order = np.argsort(scores.probability, kind="stable")
        probability, user = scores.probability[order], scores.user[order]
        positive = scores.label[order] > 0.5
        self._positive, self._negative = user[positive], user[~positive]
        # How many negatives lie below each positive, and below or level with it.
        negatives, positives = probability[~positive], probability[positive]
        self._below = np.searchsorted(negatives, positives, side="left")
        self._level = np.searchsorted(negatives, positives, side="right")

    def auc(self, times: NDArray[np.int64]) -> float:
        """AUC with user u counted ``times[u]`` times, ties half; NaN where a class is missing."""
        counted = np.zeros(len(self._negative) + 1, dtype=np.int64)
        np.cumsum(times.take(self._negative), out=counted[1:])
        positive = times.take(self._positive)
        num_pairs = positive.sum() * counted[-1]
        if not num_pairs:
            return float("nan")
        won = positive @ (counted.take(self._below) + counted.take(self._level))
        return float(won / (2 * num_pairs))
