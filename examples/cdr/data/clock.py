"""Times of two domains on one clock, or an error where they cannot be compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from cdr.data.cells import shown
from cdr.data.schema import Interactions
from cdr.data.units import DAY, UNITS, Unit, groups_of, unit_of, units_of

# Numbers that stand for "unknown" in logs: no behaviour is of the first second of 1970 or of the
# one before.
_PLACEHOLDERS = (0.0, -1.0)
# In one unit the latest time is a small multiple of the median: of a steady log, twice as much. The
# latest of times in hours is 48 times the median of the same times in days.
_FAR = 30.0
# Near the origin of a counter gaps are ordinary. That the n smallest numbers of a steady log lie
# below a quarter of the next one has the probability 4^-n.
_GAP_IS_ODD = 5


@dataclass(frozen=True, eq=False)
class Clock:
    """Two domains with comparable times.

    Args:
        source: The source domain.
        target: The target domain.
        notes: What was done, and what looks wrong.
        repaired: How many times were converted, and how many were taken as unknown.
    """

    source: Interactions
    target: Interactions
    notes: tuple[str, ...] = ()
    repaired: dict[str, int] = field(default_factory=dict)


def on_one_clock(source: Interactions, target: Interactions) -> Clock:
    """Bring the times of both domains to one unit.

    Times are left as they are where all of them are in one unit, whichever it is. Where they are
    in several units that are known by their ranges (:data:`cdr.data.units.UNITS`), within a domain
    or between the two, all are converted to seconds since 1970. 0 and -1 beside times in such a
    unit count as unknown. The unit of counters, such as days from a start or bins, cannot be told:
    they are compared as they are.

    Args:
        source: The source domain.
        target: The target domain.

    Raises:
        ValueError: If some times are moments in a unit that is known and others are not.
    """
    columns = [np.empty(0) if rows.time is None else rows.time for rows in (source, target)]
    if any(np.isnan(times).all() for times in columns):
        return Clock(source, target)  # nothing is compared
    low, high = min(map(np.nanmin, columns)), max(map(np.nanmax, columns))
    # The ordinary cases, without a look at single times: one unit, or counters below all units.
    in_one_unit = any(unit.low <= low and high < unit.high for unit in UNITS)
    if in_one_unit or high < min(unit.low for unit in UNITS):
        return Clock(source, target, tuple(_doubts(*columns)))

    times = np.concatenate(columns).astype(np.float64)
    known = ~np.isnan(times)
    place = np.full(len(times), -1)
    place[known], units = units_of(times[known])
    if not units:
        return Clock(source, target, tuple(_doubts(*columns)))
    placeholder = np.isin(times, _PLACEHOLDERS)
    strange = known & (place < 0) & ~placeholder
    if strange.any():
        raise _not_comparable(source, target, times, strange, units)
    is_target = np.arange(len(times)) >= len(columns[0])
    notes, repaired = [], {}
    if placeholder.any():
        times[placeholder] = np.nan
        repaired["times taken as unknown"] = int(placeholder.sum())
        notes.append(_unknown(placeholder, is_target))
    if len(units) > 1:
        for index, unit in enumerate(units):
            times[place == index] = unit.seconds(times[place == index])
        repaired["times converted"] = int((place >= 0).sum())
        notes.append(_converted(times, place, units, is_target))
    columns = [times[~is_target], times[is_target]]
    if not any(np.isnan(part).all() for part in columns):
        notes += _doubts(*columns)
    source, target = replace(source, time=columns[0]), replace(target, time=columns[1])
    return Clock(source, target, tuple(notes), repaired)


def _not_comparable(
    source: Interactions,
    target: Interactions,
    times: np.ndarray,
    strange: np.ndarray,
    units: Sequence[Unit],
) -> ValueError:
    row = int(strange.argmax())
    name, rows, place = "source", source, row
    if row >= len(source):
        name, rows, place = "target", target, row - len(source)
    in_domain = strange[: len(source)] if rows is source else strange[len(source) :]
    names = " or ".join(unit.name for unit in units)
    return ValueError(
        f"{name}: {int(in_domain.sum()):,} of {len(rows):,} times are not in the same unit as the "
        f"others, which are {names} (1980 to 2099): the first is {times[row]:.15g}, of user "
        f"{shown(_plain(rows.user[place]), 40)} and item {shown(_plain(rows.item[place]), 40)}. "
        "It may be a "
        "number of days, a counter, of another origin, or mean unknown. Give all times of both "
        "domains in seconds since 1970, and leave unknown ones empty."
    )


def _plain(value: object) -> object:
    return value.item() if isinstance(value, np.generic) else value


def _unknown(placeholder: np.ndarray, is_target: np.ndarray) -> str:
    return (
        f"{int((placeholder & ~is_target).sum()):,} source and "
        f"{int((placeholder & is_target).sum()):,} target behaviours have the time 0 or -1 beside "
        "times since 1970: they are taken as unknown."
    )


def _converted(
    times: np.ndarray, place: np.ndarray, units: Sequence[Unit], is_target: np.ndarray
) -> str:
    parts = []
    for name, domain in (("source", ~is_target), ("target", is_target)):
        counts = [int((domain & (place == index)).sum()) for index in range(len(units))]
        told = [f"{n:,} {u.name}" for n, u in zip(counts, units, strict=True) if n]
        if told:
            known = times[domain & (place >= 0)]
            span = f"from {_date(known.min())} to {_date(known.max())}"
            parts.append(f"{' and '.join(told)} in the {name} ({span})")
    return (
        "Times are in different units, told apart by their ranges, and are converted to seconds "
        f"since 1970: {', '.join(parts)}."
    )


def _date(seconds: float) -> str:
    return str(np.datetime64(int(seconds), "s").astype("datetime64[D]"))


def _doubts(source: np.ndarray, target: np.ndarray) -> Iterator[str]:
    """What looks wrong in times that are compared, each domain with one at least that is known."""
    known = [times[~np.isnan(times)] for times in (source, target)]
    unit = unit_of(np.array([end for times in known for end in (times.min(), times.max())]))
    if unit is None:
        yield from _of_several_units(*known)
    elif _whole_days(known[0], unit) != _whole_days(known[1], unit):
        coarse, fine = ("source", "target") if _whole_days(known[0], unit) else ("target", "source")
        yield (
            f"The {coarse} has the days of its behaviours, the {fine} also the time of day: a "
            f"behaviour of the {coarse} counts as one at the beginning of its day, before all "
            f"others of the {fine} on this day."
        )
    if known[0].max() < known[1].min():
        ends = (known[0].max(), known[1].min())
        last, first = (f"{t:.15g}" if unit is None else _date(float(unit.seconds(t))) for t in ends)
        yield (
            f"Every source time (up to {last}) is earlier than every target time (from {first}), "
            "so that the cut by time leaves out no source behaviour. If this is not so in the log, "
            "the times differ in their unit or origin."
        )


def _of_several_units(source: np.ndarray, target: np.ndarray) -> Iterator[str]:
    """Whether it looks as if a domain of counters, or some of its rows, were in another unit."""
    sizes = [np.abs(times) for times in (source, target)]
    medians = [float(np.median(size)) for size in sizes]
    typical, largest = min(medians), max(float(size.max()) for size in sizes)
    every = np.concatenate([[typical], *sizes])
    group = groups_of(every)
    # Bins from 0 have the median 0 or 1, and gaps that mean nothing.
    above = typical > _FAR and group[0] != group.max()
    below = typical > _FAR and ((group < group[0]) & (every > 0)).sum() >= _GAP_IS_ODD
    if above or below or largest > _FAR * max(typical, 1.0):
        yield (
            "The unit of the times cannot be told from their range. Their medians are "
            f"{medians[0]:.15g} in the source and {medians[1]:.15g} in the target, and the largest "
            f"is {largest:.15g}: if a domain, or a part of its rows, is in another unit, the cut "
            "by time is wrong. Give all times in one unit."
        )


def _whole_days(times: np.ndarray, unit: Unit) -> bool:
    # Most logs show it by the first few times.
    return not any((unit.seconds(part) % DAY).any() for part in (times[:1000], times))
