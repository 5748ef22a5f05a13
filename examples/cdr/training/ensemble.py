"""One recommender out of several trainings of the same variant."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cdr.training.evaluation import Scores


def ensemble(several: Sequence[Scores]) -> Scores:
    """The scores of the mean of predicted log odds.

    Args:
        several: Of trainings on the same data, that is, on the same rows.

    Example:
        >>> rows = np.ones(1, np.float32), np.zeros(1, np.int64)
        >>> odds = [Scores(np.array([p], np.float32), *rows) for p in (0.5, 0.9)]  # 1 and 9
        >>> round(float(ensemble(odds).probability[0]), 4)  # odds of 3
        0.75
    """
    first = several[0]
    # float32 has numbers closer to 0 than to 1.
    low, high = np.finfo(np.float32).tiny, 1.0 - np.finfo(np.float32).epsneg
    odds = [
        np.log(p) - np.log1p(-p)
        for p in (np.clip(each.probability.astype(np.float64), low, high) for each in several)
    ]
    mean = 1.0 / (1.0 + np.exp(-np.mean(odds, axis=0)))
    return Scores(mean.astype(np.float32), first.label, first.user)
