"""Ranking and calibration metrics, exact with ties."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

WEIGHT_AUC = (
    "the probability that a truly relevant source behaviour got a larger weight than one that is "
    "not (0.5 is chance)"
)
"""What the AUC of learned weights against true flags is, in words."""


def auc(scores: NDArray[np.floating], labels: NDArray[np.generic]) -> float:
    """The probability that a positive outranks a negative, ties counted half.

    Computed from midranks in float64 (Mann–Whitney). NaN where one class is missing: there is no
    such probability then.
    """
    positive = np.asarray(labels).astype(bool)
    num_positive = int(positive.sum())
    num_negative = len(positive) - num_positive
    if not num_positive or not num_negative:
        return float("nan")
    rank_sum = _midranks(np.asarray(scores, dtype=np.float64))[positive].sum()
    return float((rank_sum - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))


def auc_error(
    scores: NDArray[np.floating], labels: NDArray[np.generic], groups: NDArray[np.integer]
) -> float:
    """Standard error of the AUC over groups (users), whose rows need not be independent.

    The root of the sum of squares of :func:`auc_contributions`, which is the variance of DeLong et
    al. (1988) with the terms of a group added up (Obuchowski, 1997). NaN where one class is
    missing.
    """
    _, group = np.unique(groups, return_inverse=True)
    return float(np.sqrt((auc_contributions(scores, labels, group) ** 2).sum()))


def auc_contributions(
    scores: NDArray[np.floating], labels: NDArray[np.generic], group: NDArray[np.integer]
) -> Floats:
    """What the rows of each group move the AUC by, [groups]; they add up to zero.

    The placement of a row is the share of the rows of the other class that it is on the right side
    of, ties half (DeLong et al., 1988). A row contributes its placement less the AUC, over the
    number of rows of its class; a group the sum of its rows. NaN where one class is missing.

    Args:
        scores: Of each row, [n].
        labels: Of each row, [n].
        group: The group of each row, from 0, [n].
    """
    positive = np.asarray(labels).astype(bool)
    mean = auc(scores, labels)
    if np.isnan(mean):
        return np.full(int(np.max(group, initial=-1)) + 1, np.nan)
    values = np.asarray(scores, dtype=np.float64)
    rank = _midranks(values)
    share = np.empty(len(values))
    for own in (positive, ~positive):
        # How many rows of the other class lie below, ties half, as a share of that class.
        below = (rank[own] - _midranks(values[own])) / (~own).sum()
        share[own] = (below if own is positive else 1.0 - below) - mean
        share[own] /= own.sum()
    return np.bincount(group, share).astype(np.float64)


def grouped_auc(
    scores: NDArray[np.floating], labels: NDArray[np.generic], groups: NDArray[np.integer]
) -> float:
    """AUC within each group (a user), averaged by the group's size (GAUC).

    Groups of one class have none and are left out; NaN if no group is left.
    """
    _, group, size = np.unique(groups, return_inverse=True, return_counts=True)
    positive = np.asarray(labels).astype(bool)
    # Scores ranked within (group, score) pairs; the ranks of a group start after all groups before.
    order = np.lexsort((scores, group))
    step = np.diff(group[order]) != 0
    step |= np.diff(np.asarray(scores)[order]) != 0
    key = np.empty(len(order))
    key[order] = np.concatenate([[0], np.cumsum(step)])
    rank = _midranks(key) - (np.cumsum(size) - size)[group]
    num_positive = np.bincount(group, positive)
    num_negative = size - num_positive
    mixed = (num_positive > 0) & (num_negative > 0)
    if not mixed.any():
        return float("nan")
    excess = np.bincount(group, rank * positive) - num_positive * (num_positive + 1) / 2
    values = excess[mixed] / (num_positive * num_negative)[mixed]
    return float(np.average(values, weights=size[mixed]))


def log_loss(probabilities: NDArray[np.floating], labels: NDArray[np.generic]) -> float:
    """Mean binary cross entropy; probabilities are kept 1e-12 away from 0 and 1."""
    p = np.clip(np.asarray(probabilities, dtype=np.float64), 1e-12, 1 - 1e-12)
    y = np.asarray(labels, dtype=np.float64)
    return float(-(y * np.log(p) + (1 - y) * np.log1p(-p)).mean())


def relative_improvement(value: float, base: float) -> float:
    """RelaImpr of an AUC over that of the single-domain model (BIAO §4.2).

    NaN where the base is at chance: there is nothing to be relative to.
    """
    if base == 0.5:
        return float("nan")
    return (value - 0.5) / (base - 0.5) - 1.0


def improvement_over(value: float, single: float | None) -> float | None:
    """RelaImpr for a table: None without a single-domain model, or one at or below chance."""
    if single is None or single <= 0.5:
        return None
    return relative_improvement(value, single)


def _midranks(values: Floats) -> Floats:
    """Ranks from 1, the same for equal values."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]
