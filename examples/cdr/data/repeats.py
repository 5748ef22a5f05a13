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
    pair = _pairs(user, item)
    asked = _places_of_repeated(pair)
    columns = [pair, rows.label, rows.order, rows.time]
    keys = [_comparable(column[asked]) for column in columns if column is not None]
    order = np.lexsort(keys)  # stable: of equal rows the first comes first
    same = np.ones(max(len(asked) - 1, 0), dtype=bool)
    for key in keys:
        same &= key[order[1:]] == key[order[:-1]]
    repeated = np.zeros(len(pair), dtype=bool)
    repeated[asked[order[1:][same]]] = True
    return repeated


def met_before(user: np.ndarray, item: np.ndarray) -> np.ndarray:
    """Which rows have an item that an earlier row of the same user has, bool [n]."""
    pair = _pairs(user, item)
    places = _places_of_repeated(pair)
    again = np.zeros(len(pair), dtype=bool)
    again[places] = True
    again[places[np.unique(pair[places], return_index=True)[1]]] = False  # the first of each
    return again


def _places_of_repeated(values: np.ndarray) -> np.ndarray:
    """Where the values are that occur more than once, in order."""
    # Sorting the values is quicker than sorting their places, and mostly nothing is repeated.
    ordered = np.sort(values)
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if not len(repeated):
        return np.empty(0, dtype=np.int64)
    nearest = np.minimum(np.searchsorted(repeated, values), len(repeated) - 1)
    return np.flatnonzero(repeated[nearest] == values)


def _pairs(user: np.ndarray, item: np.ndarray) -> np.ndarray:
    """One integer for each user and item."""
    return np.asarray(user.astype(np.int64) * (int(item.max(initial=0)) + 1) + item)


def _comparable(column: np.ndarray) -> np.ndarray:
    """The column with equal values in place of unknown ones."""
    return np.where(np.isnan(column), -np.inf, column) if column.dtype.kind == "f" else column
