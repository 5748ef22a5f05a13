"""Behaviours that a log holds twice, and items that a user meets again."""

from __future__ import annotations

import numpy as np

from cdr.data.schema import Interactions


def repeated_lines(rows: Interactions, user: np.ndarray, item: np.ndarray) -> np.ndarray:
    """Which rows give a behaviour that an earlier row gives too, bool [n].

    Two rows give the same behaviour if user, item, label and time are equal, and `order` where
    there is one; unknown times are equal.

    Args:
        rows: The behaviours, in file order.
        user: Index of each row's user, [n].
        item: Index of each row's item, [n].
    """
    again = met_before(user, item)
    if not again.any():
        return again
    pair = _pairs(user, item)
    asked = np.flatnonzero(np.isin(pair, pair[again]))
    columns = [
        pair,
        rows.label,
        rows.order,
        None if rows.time is None else _equal_if_nan(rows.time),
    ]
    keys = [column[asked] for column in columns if column is not None]
    order = np.lexsort(keys)  # stable: of equal rows the first comes first
    same = np.ones(len(asked) - 1, dtype=bool)
    for key in keys:
        same &= key[order[1:]] == key[order[:-1]]
    repeated = np.zeros(len(pair), dtype=bool)
    repeated[asked[order[1:][same]]] = True
    return repeated


def met_before(user: np.ndarray, item: np.ndarray) -> np.ndarray:
    """Which rows have an item that an earlier row of the same user has, bool [n]."""
    pair = _pairs(user, item)
    again = np.zeros(len(pair), dtype=bool)
    ordered = np.sort(pair)
    if (ordered[1:] == ordered[:-1]).any():  # sorting places is slower, and seldom needed
        place = np.argsort(pair, kind="stable")
        again[place[1:]] = pair[place[1:]] == pair[place[:-1]]
    return again


def _pairs(user: np.ndarray, item: np.ndarray) -> np.ndarray:
    """One integer for each user and item."""
    return np.asarray(user.astype(np.int64) * (int(item.max(initial=0)) + 1) + item)


def _equal_if_nan(time: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(time), -np.inf, time)
