"""Ratings become labels: which are positive, and whether the scale is the one that is assumed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

LIKED_ABOVE = 3.0
"""A rating above it is positive, on the scale from 1 to 5."""

_LOWEST, _HIGHEST = 0.0, 5.0  # of the scales on which LIKED_ABOVE may be meant
NO_RATINGS = (
    "Of clicks or purchases without ratings (implicit feedback) every row would be positive; no "
    "negatives are drawn. Add a column rating with 1, add rows with 0 of items not taken, and pass "
    "--like-threshold 0."
)


class Likes(NamedTuple):
    """Labels made of ratings.

    Args:
        label: Whether a behaviour is positive, bool [n].
        notes: What to tell of the scale.
    """

    label: np.ndarray
    notes: tuple[str, ...]


def likes(
    rating: np.ndarray, parts: Mapping[str, np.ndarray], threshold: float | None, where: str
) -> Likes:
    """The labels of ratings, if they are of two classes.

    Args:
        rating: Finite numbers, [n].
        parts: The rows of the source and of the target, bool [n] each, by these names.
        threshold: A rating above it is positive; None for :data:`LIKED_ABOVE`.
        where: What the ratings are in, for messages.

    Raises:
        ValueError: If the target has one class only, or the source no positives; or `threshold` is
            not finite.

    Example:
        >>> half = np.array([True, True, False, False])
        >>> parts = {"source": half, "target": ~half}
        >>> likes(np.array([1.0, 9, 2, 10]), parts, 7, "log.csv").label.tolist()
        [False, True, False, True]
    """
    above = LIKED_ABOVE if threshold is None else float(threshold)
    if not np.isfinite(above):
        raise ValueError(f"--like-threshold {threshold}: give a finite number.")
    label = rating > above
    notes = []
    for name, rows in parts.items():
        if label[rows].all() and rows.any() and name == "source":
            notes.append(
                f"All {int(rows.sum()):,} ratings of the source are above {above:g} and so "
                "positive: its losses can only teach that everything is liked."
            )
        elif rows.any() and (not label[rows].any() or label[rows].all()):
            raise _one_class(rating, parts, name, above, threshold is None, where)
    scale = ", ".join(
        f"those of the {name} run from {rating[rows].min():g} to {rating[rows].max():g}, and "
        f"{label[rows].mean():.0%} are positive"
        for name, rows in parts.items()
        if rows.any()
    )
    if threshold is not None:
        notes.append(f"Ratings above {above:g} are positive (--like-threshold): {scale}.")
    elif _of_another_scale(rating, parts):
        notes.append(
            f"Ratings above {above:g} are positive, as on a scale from 1 to 5, but {scale}. "
            f"--like-threshold sets another rating: with {_middle(rating[_any(parts)]):.6g}, about "
            "half are positive."
        )
    zeros = int((rating[_any(parts)] == 0).sum())
    if threshold is None and zeros and (rating[_any(parts)] >= 0).all():
        notes.append(
            f"{zeros:,} ratings are 0 and count as negative: if 0 stands for no rating, leave "
            "these rows out."
        )
    return Likes(label, tuple(notes))


def parts_of(table: pa.Table, sources: tuple[str, ...], target: str) -> dict[str, np.ndarray]:
    """The rows of the source and of the target, by the column domain of a table."""
    domain = table["domain"]
    return {
        "source": pc.is_in(domain, value_set=pa.array(sources, pa.string())).to_numpy(),
        "target": pc.equal(domain, target).to_numpy(),
    }


def _any(parts: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.asarray(np.any([*parts.values()], axis=0))


def _of_another_scale(rating: np.ndarray, parts: Mapping[str, np.ndarray]) -> bool:
    read = rating[_any(parts)]
    return bool(len(read)) and (read.min() < _LOWEST or read.max() > _HIGHEST)


def _one_class(
    rating: np.ndarray,
    parts: Mapping[str, np.ndarray],
    name: str,
    above: float,
    by_default: bool,
    where: str,
) -> ValueError:
    values = rating[parts[name]]
    if values.min() == values.max():
        return ValueError(
            f"{where}: all {len(values):,} ratings of the {name} are {values[0]:g}, as in a log of "
            "clicks or purchases (implicit feedback): they are of one class, and nothing can be "
            "learned; no negatives are drawn. Add rows with a lower rating of items not taken, "
            "and pass --like-threshold with a number between the two."
        )
    given = "the default, for a scale from 1 to 5" if by_default else "--like-threshold"
    return ValueError(
        f"{where}: ratings above {above:g} are positive ({given}), but the {len(values):,} ratings "
        f"of the {name} run from {values.min():g} to {values.max():g}, so that "
        f"{'all' if values.min() > above else 'none'} of them are. {_advice(rating, parts)}"
    )


def _advice(rating: np.ndarray, parts: Mapping[str, np.ndarray]) -> str:
    """What to pass as a threshold that fits both domains."""
    ends = {name: (rating[rows].min(), rating[rows].max()) for name, rows in parts.items()}
    target = rating[parts["target"]]
    # Above a threshold that serves there are some of each domain, and below it some of the target.
    serving = target[target < ends["source"][1]]
    if not len(serving):
        told = " and ".join(
            f"{low:g} to {high:g} in the {name}" for name, (low, high) in ends.items()
        )
        return (
            f"No --like-threshold fits both domains, whose scales are {told}: write the ratings on "
            "one scale."
        )
    middle = min(_middle(target), float(serving.max()))
    shares = " and ".join(
        f"{(rating[rows] > middle).mean():.0%} of the {name}'s" for name, rows in parts.items()
    )
    return f"Pass --like-threshold: with {middle:.6g}, {shares} ratings are positive."


def _middle(values: np.ndarray) -> float:
    """A rating above which about half of the ratings are."""
    scale, counts = np.unique(values, return_counts=True)
    below = np.cumsum(counts)[:-1] / len(values)
    return float(scale[np.abs(below - 0.5).argmin()]) if len(below) else float(scale[0])
