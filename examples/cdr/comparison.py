"""Whether a difference between two variants is more than chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cdr.evaluation import Scores

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
    """

    difference: float
    p_value: float | None
    low: float
    high: float


def compare(ours: Sequence[Scores], base: Sequence[Scores], seed: int = 0) -> Comparison:
    """Compare the predictions of two variants seed by seed, on the same rows.

    The t-test asks whether another seed would show the difference again; the bootstrap, which
    resamples users with all their rows, whether other users would.
    """
    pairs = [(_Ranked(a), _Ranked(b)) for a, b in zip(ours, base, strict=True)]
    rng = np.random.default_rng(seed)
    num_users = int(max(scores.user.max() for scores in ours)) + 1
    once = np.ones(num_users)
    differences = [a.auc(once) - b.auc(once) for a, b in pairs]
    samples = np.empty(_RESAMPLES)
    for i in range(_RESAMPLES):
        times = np.bincount(rng.integers(num_users, size=num_users), minlength=num_users)
        samples[i] = np.mean([a.auc(times) - b.auc(times) for a, b in pairs])
    low, high = np.nanquantile(samples, (0.025, 0.975))
    p_value = paired_p_value(differences)
    return Comparison(float(np.mean(differences)), p_value, float(low), float(high))


def paired_p_value(differences: Sequence[float]) -> float | None:
    """Of the paired t-test over seeds; None for a single seed, or where all are zero."""
    from scipy.stats import ttest_rel

    if len(differences) < 2 or not any(differences):
        return None
    return float(ttest_rel(differences, np.zeros(len(differences))).pvalue)


class _Ranked:
    """Scores sorted once, so that a resample costs two passes."""

    def __init__(self, scores: Scores) -> None:
        order = np.argsort(scores.probability, kind="stable")
        sorted_scores = scores.probability[order]
        self._user = scores.user[order]
        self._positive = scores.label[order] > 0.5
        # The rows that each positive ties with.
        self._first = np.searchsorted(sorted_scores, sorted_scores[self._positive], side="left")
        self._end = np.searchsorted(sorted_scores, sorted_scores[self._positive], side="right")

    def auc(self, times: NDArray[np.number]) -> float:
        """AUC with user u counted ``times[u]`` times, ties half; NaN where a class is missing."""
        rows = times[self._user].astype(np.float64)
        positive = rows[self._positive]
        rows[self._positive] = 0.0
        below = np.concatenate([[0.0], np.cumsum(rows)])
        num_pairs = positive.sum() * below[-1]
        if not num_pairs:
            return float("nan")
        return float(positive @ (below[self._first] + below[self._end]) / (2.0 * num_pairs))
