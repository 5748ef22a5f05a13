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
    from scipy.stats import ttest_rel

    pairs = [(_Ranked(a), _Ranked(b)) for a, b in zip(ours, base, strict=True)]
    differences = [a.auc(np.ones(a.num_rows)) - b.auc(np.ones(b.num_rows)) for a, b in pairs]
    p_value = None
    if len(pairs) > 1 and any(differences):
        p_value = float(ttest_rel(differences, np.zeros(len(pairs))).pvalue)
    rng = np.random.default_rng(seed)
    num_users = int(max(scores.user.max() for scores in ours)) + 1
    samples = np.empty(_RESAMPLES)
    for i in range(_RESAMPLES):
        times = np.bincount(rng.integers(num_users, size=num_users), minlength=num_users)
        samples[i] = np.mean([a.auc(times[a.user]) - b.auc(times[b.user]) for a, b in pairs])
    low, high = np.nanquantile(samples, (0.025, 0.975))
    return Comparison(float(np.mean(differences)), p_value, float(low), float(high))


class _Ranked:
    """Scores sorted once, so that a resample costs one pass."""

    def __init__(self, scores: Scores) -> None:
        order = np.argsort(scores.probability, kind="stable")
        self.user = scores.user[order]
        self.num_rows = len(order)
        self._label = scores.label[order] > 0.5
        _, self._first = np.unique(scores.probability[order], return_index=True)

    def auc(self, times: NDArray[np.number]) -> float:
        """AUC with row i counted ``times[i]`` times, ties half; NaN where a class is missing."""
        positive = np.add.reduceat(times * self._label, self._first, dtype=np.float64)
        negative = np.add.reduceat(times * ~self._label, self._first, dtype=np.float64)
        below = np.cumsum(negative) - negative
        num_pairs = float(positive.sum() * negative.sum())
        if not num_pairs:
            return float("nan")
        return float((positive * (below + negative / 2)).sum()) / num_pairs
