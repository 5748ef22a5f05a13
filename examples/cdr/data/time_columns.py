"""Columns of times: numbers, dates as text, and timestamps."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cdr.data import tables

_ISO = r"^\d{4}-\d\d-\d\d"
_KIND = "a number or an ISO 8601 date or time"
_ZONE = r":\d\d.*(Z|[+-]\d\d(:?\d\d)?)$"


class Times(NamedTuple):
    """A column of times.

    Args:
        values: Seconds since 1970 of dates and timestamps, numbers as they are, NaN where a time
            is unknown; float64 [n].
        note: What to tell if times are written in several ways; "" if not.
    """

    values: np.ndarray
    note: str


def times(table: pa.Table, column: str, path: Path | str) -> Times:
    """A column of times, "" or null where unknown.

    Text may be numbers, ISO 8601 dates (2014-01-31), which count as the first moment of the day,
    and ISO 8601 times (2014-01-31T12:30:00), in UTC where they name no zone.

    Args:
        table: The table.
        column: A column of strings, numbers, dates or timestamps.
        path: Of the file, for messages.

    Raises:
        ValueError: If an entry is none of this, naming the first such row and its value.
    """
    if not (pa.types.is_string(table[column].type) or pa.types.is_large_string(table[column].type)):
        return Times(tables.numbers(table, column, path, kind=_KIND), "")
    # A date has a hyphen, which is quicker to look for.
    if not pc.any(pc.match_substring(table[column], "-")).as_py():
        return Times(tables.numbers(table, column, path, kind=_KIND), "")
    texts = pc.utf8_trim_whitespace(table[column])
    iso = pc.fill_null(pc.match_substring_regex(texts, _ISO), False)
    if not pc.any(iso).as_py():
        return Times(tables.numbers(table, column, path, kind=_KIND), "")

    numeric = tables.replace(table, column, pc.if_else(iso, None, texts))
    values = tables.numbers(numeric, column, path, kind=_KIND).copy()
    zoned = pc.and_(iso, pc.fill_null(pc.match_substring_regex(texts, _ZONE), False))
    local = pc.and_(iso, pc.invert(zoned))
    counts = {"numbers": int((~np.isnan(values)).sum())}
    for rows, zone in ((local, None), (zoned, "UTC")):
        values[rows.to_numpy()] = _seconds(texts, rows, zone, column, path)
    dates = pc.and_(local, pc.equal(pc.utf8_length(texts), len("2014-01-31")))
    counts["dates, which count as the first moment of the day"] = pc.sum(dates).as_py()
    counts["times without a zone, taken as UTC"] = pc.sum(local).as_py() - pc.sum(dates).as_py()
    counts["times with a zone"] = pc.sum(zoned).as_py()
    told = [f"{count:,} {what}" for what, count in counts.items() if count]
    note = f"{column!r} of {Path(path).name} has {', '.join(told)}: all are read as seconds."
    return Times(values, note if len(told) > 1 else "")


def _seconds(
    texts: pa.ChunkedArray,
    rows: pa.ChunkedArray,
    zone: str | None,
    column: str,
    path: Path | str,
) -> np.ndarray:
    """Seconds since 1970 of the dates and times in some rows."""
    asked = texts.filter(rows)
    try:
        nanoseconds = pc.cast(pc.cast(asked, pa.timestamp("ns", zone)), pa.int64())
    except pa.ArrowInvalid:  # it does not say where
        place = next(n for n, text in enumerate(asked) if not _is_moment(text, zone))
        row = int(np.flatnonzero(rows.to_numpy())[place])
        raise ValueError(
            f"{path}: {column!r} is {texts[row].as_py()!r} in row {row + 1} (the first below the "
            "header is row 1), which looks like an ISO 8601 date or time and is none from 1678 to "
            "2261. Correct it, or leave it empty where the time is unknown."
        ) from None
    seconds: np.ndarray = pc.cast(nanoseconds, pa.float64(), safe=False).to_numpy() / 1e9
    return seconds


def _is_moment(text: pa.Scalar, zone: str | None) -> bool:
    try:
        text.cast(pa.timestamp("ns", zone))
    except pa.ArrowInvalid:
        return False
    return True
