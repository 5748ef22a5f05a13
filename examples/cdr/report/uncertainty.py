"""How far a difference of AUCs may be from what other seeds and other users would show."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cdr.training import Scores, auc, auc_contributions

# Of the normal distribution: a two-sided test at 5 % finds a gain of so many standard errors in
# 80 % of all cases.
_LEVEL, _POWER = 1.96, 0.84


def standard_error(ours: Sequence[Scores], base: Sequence[Scores]) -> float:
    """Standard error of a mean AUC difference over seeds and users together.

    Each of S seeds s has a difference d_s of AUCs, to which user u contributes c_us (the
    difference of both :func:`cdr.training.auc_contributions`). Seeds and users are crossed random
    effects where all seeds are tested on the same rows. The variance of the mean of d is then

        users + seeds - both,  where
        users = sum over u of (mean over s of c_us)²,
        seeds = (variance over s of d_s) / S,
        both  = (sum over u of the variance over s of c_us) / S,

    all variances with S - 1 in the denominator. The users' part and the seeds' part each hold the
    variance that belongs to pairs of a seed and a user, which is subtracted once, as by Cameron,
    Gelbach and Miller (2011, two-way clustering) and, for AUCs, by Gallas (2006). It is no less
    than the users' or the seeds' part. With a single seed it is the users' part: how much seeds
    differ is not known.

    Where every seed has data, and so users, of its own, the d_s are independent, and the variance
    is the seeds' part, in which that of the users is: (sum over s and u of c_us²) / S². Of a few
    seeds the former may be next to nothing by chance. So it is no less than the latter, which is
    known from many users.

    Args:
        ours: Scores of each seed.
        base: Those to compare with, of the same seeds, on the same rows.

    Returns:
        The standard error, in units of AUC; NaN where a class is missing.
    """
    pairs = list(zip(ours, base, strict=True))
    num_seeds = len(pairs)
    difference = [auc(a.probability, a.label) - auc(b.probability, b.label) for a, b in pairs]
    seeds = float(np.var(difference, ddof=1)) / num_seeds if num_seeds > 1 else 0.0
    num_users = max(int(a.user.max()) for a in ours) + 1
    contributed = np.stack([_of_users(a, num_users) - _of_users(b, num_users) for a, b in pairs])
    if not same_rows(ours):
        users = float((contributed**2).sum()) / num_seeds**2
        return float(np.sqrt(max(users, seeds)))
    users = float((contributed.mean(0) ** 2).sum())
    both = float(contributed.var(0, ddof=1).sum()) / num_seeds if num_seeds > 1 else 0.0
    return float(np.sqrt(max(users + seeds - both, users, seeds)))


def smallest_detectable(error: float) -> float:
    """The gain that a two-sided test at 5 % finds with a probability of 80 %.

    It is (1.96 + 0.84) standard errors (Cohen, 1988): of true gains of that size, one in five is
    still missed. This is of the normal distribution; of very few seeds the error is not known so
    well, and somewhat larger gains are needed.

    Args:
        error: Standard error of the difference.

    Example:
        >>> round(smallest_detectable(0.0034), 4)
        0.0095
    """
    return (_LEVEL + _POWER) * error


def confidence_interval(difference: float, error: float) -> tuple[float, float]:
    """The 95 % interval of a difference with a standard error, by the normal distribution."""
    return difference - _LEVEL * error, difference + _LEVEL * error


def same_rows(several: Sequence[Scores]) -> bool:
    """Whether all are scores of the same rows, as those of several seeds on the same data are."""
    first = several[0]
    return all(
        np.array_equal(first.user, other.user) and np.array_equal(first.label, other.label)
        for other in several[1:]
    )


def _of_users(scores: Scores, num_users: int) -> NDArray[np.float64]:
    found = auc_contributions(scores.probability, scores.label, scores.user)
    return np.concatenate([found, np.zeros(num_users - len(found))])
