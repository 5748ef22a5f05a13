"""Which positive behaviours of a user come before a candidate."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cdr.data.indexing import IndexedRows, as_long, last_known_time
from cdr.data.schema import Behaviors, Histories


class PastFinder:
    """Finds the positive behaviours of a user before a target behaviour."""

    def __init__(self, src: IndexedRows, train: IndexedRows, timed: bool) -> None:
        positive = np.flatnonzero(src.label)
        self._timed = timed
        self._source_user = src.user[positive]
        self._source_time = last_known_time(src.user, src.time)[positive]
        self._target_row = _usable(train, timed)
        self._target_user = train.user[self._target_row]

    def beside(
        self, rows: IndexedRows, time: np.ndarray, place: np.ndarray | None = None
    ) -> Behaviors:
        """Target rows with the slices of the positives that precede them.

        Args:
            rows: Target rows.
            time: Source positives up to this time are included, [rows].
            place: Training positives before this training row are included, [rows]; None: all.
        """
        if self._timed:
            first, end = _up_to(self._source_user, self._source_time, rows.user, time)
        else:
            first, end = _slices(self._source_user, rows.user)
        source = np.stack([first, end], 1)
        first, end = _slices(self._target_user, rows.user)
        if place is not None:
            end = np.searchsorted(self._target_row, place)
        return replace(
            rows.behaviors(),
            source_past=as_long(source),
            target_past=as_long(np.stack([first, end], 1)),
        )


def _slices(users: np.ndarray, of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the entries of some users begin and end, given the sorted users of all entries."""
    bounds = np.searchsorted(users, np.arange(of.max(initial=-1) + 2))
    return bounds[of], bounds[of + 1]


def _up_to(
    users: np.ndarray, times: np.ndarray, of: np.ndarray, until: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The same up to and including a time; entries are sorted by user and time."""
    # Complex numbers sort by their first part, then by the second, so that a single search does.
    end = np.searchsorted(_pairs(users, times), _pairs(of, until), side="right")
    return _slices(users, of)[0], end


def _pairs(users: np.ndarray, times: np.ndarray) -> np.ndarray:
    pairs = np.empty(len(users), dtype=np.complex128)
    pairs.real, pairs.imag = users, times  # not u + 1j * t, which makes NaN of an infinite time
    return pairs


def _usable(train: IndexedRows, timed: bool) -> np.ndarray:
    """The training positives that a target history may show."""
    return np.flatnonzero(train.label & ~np.isnan(train.time) if timed else train.label)


def source_histories(src: IndexedRows) -> Histories:
    positive = np.flatnonzero(src.label)
    before = np.cumsum(src.label) - src.label  # positives in all rows above, other users' included
    start = before[np.searchsorted(src.user, src.user)]
    return Histories(
        as_long(src.item[positive]), as_long(start), as_long(before), as_long(positive)
    )


def target_histories(src: IndexedRows, train: IndexedRows, timed: bool) -> Histories:
    positive = _usable(train, timed)
    user, time = train.user[positive], train.time[positive]
    start, end = _slices(user, src.user)
    if timed:
        unknown = np.isnan(src.time)
        end = np.where(unknown, end, _up_to(user, time, src.user, src.time)[1])
    return Histories(as_long(train.item[positive]), as_long(start), as_long(end), as_long(positive))
