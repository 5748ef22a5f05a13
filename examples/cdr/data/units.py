"""Units that times are written in, told from the size of the numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

DAY = 86_400.0  # seconds
# A behaviour in a log is of these years. The ranges of the units do not overlap then.
_FIRST = 315_532_800.0  # 1980-01-01, in seconds since 1970
_LAST = 4_102_444_800.0  # 2100-01-01


@dataclass(frozen=True, eq=False)
class Unit:
    """A way to write a moment as a number.

    Args:
        name: With its preposition, for a sentence.
        low: The smallest number that is a moment from 1980 to 2099.
        high: All such numbers are below it.
        seconds: From numbers [n] to seconds since 1970, NaN where a number is no moment.
    """

    name: str
    low: float
    high: float
    seconds: Callable[[np.ndarray], np.ndarray]

    def holds(self, times: np.ndarray) -> bool:
        """Whether all these numbers are moments from 1980 to 2099 in this unit."""
        inside = self.low <= times.min() and times.max() < self.high
        return bool(inside) and not np.isnan(self.seconds(times)).any()


def _since_1970(name: str, per_second: float) -> Unit:
    low, high = _FIRST * per_second, _LAST * per_second
    return Unit(name, low, high, lambda times: times / per_second)


def _of_dates(times: np.ndarray) -> np.ndarray:
    """Numbers that read as YYYYMMDD."""
    year, month, day = times // 1e4, times // 100 % 100, times % 100
    valid = (month >= 1) & (month <= 12) & (day >= 1) & (day == np.floor(day))
    months = np.where(valid, (year - 1970) * 12 + month - 1, 0).astype("datetime64[M]")
    days = months.astype("datetime64[D]") + np.where(valid, day - 1, 0).astype("timedelta64[D]")
    valid &= days.astype("datetime64[M]") == months  # the month has this day
    return np.where(valid, days.astype(np.float64) * DAY, np.nan)


def _of_clock_times(times: np.ndarray) -> np.ndarray:
    """Numbers that read as YYYYMMDDhhmmss."""
    hour, minute, second = times // 1e4 % 100, times // 100 % 100, times % 100
    valid = (hour < 24) & (minute < 60) & (second < 60)
    clock = hour * 3600 + minute * 60 + second
    return np.where(valid, _of_dates(times // 1e6) + clock, np.nan)


UNITS = (
    _since_1970("in seconds", 1.0),
    _since_1970("in milliseconds", 1e3),
    _since_1970("in microseconds", 1e6),
    _since_1970("in nanoseconds", 1e9),
    Unit("as YYYYMMDD", 19800101.0, 21000101.0, _of_dates),
    Unit("as YYYYMMDDhhmmss", 19800101e6, 21000101e6, _of_clock_times),
)


def unit_of(times: np.ndarray) -> Unit | None:
    """The unit in which all these numbers are moments from 1980 to 2099, if there is one.

    Example:
        >>> unit_of(np.array([1.4e12, 1.5e12])).name
        'in milliseconds'
        >>> unit_of(np.array([1.0, 11.0])) is None  # bins, or days from a start
        True
    """
    return next((unit for unit in UNITS if unit.holds(times)), None)


def units_of(times: np.ndarray) -> tuple[np.ndarray, list[Unit]]:
    """The unit of each number, where numbers in several units are mixed.

    A group of numbers of like size that is not in the range of one unit as a whole has none: a
    counter may run through such a range.

    Args:
        times: Finite numbers, [n].

    Returns:
        The place of each number's unit in the list, -1 for none, [n]; and the units found.

    Example:
        >>> place, units = units_of(np.array([1.4e9, 1.5e9, 1.5e12, 3.0]))
        >>> place.tolist(), [unit.name for unit in units]
        ([0, 0, 1, -1], ['in seconds', 'in milliseconds'])
    """
    group = groups_of(times)
    by_group = [unit_of(times[group == place]) for place in range(int(group.max()) + 1)]
    units = [unit for unit in UNITS if unit in by_group]
    places = np.array([-1 if unit is None else units.index(unit) for unit in by_group])
    return places[group], units


def groups_of(times: np.ndarray) -> np.ndarray:
    """The group of each number, [n], from 0 for the smallest: numbers of like size.

    Numbers of one group are of one unit, for a log in one unit has no large gaps, and units differ
    by a factor of seven or more (weeks and days). A group ends where no number is between two
    powers of two, 2^k and 2^(k+1), but some are above; a gap of a factor of four always ends one.
    """
    # Numbers below 1 are of no unit; whatever their size, they make one group.
    exponent = np.where(times >= 1, np.frexp(times)[1], 0)
    taken = np.bincount(exponent) > 0
    begins = taken & ~np.concatenate([[False], taken[:-1]])
    return np.asarray((np.cumsum(begins) - 1)[exponent])
