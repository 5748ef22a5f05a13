"""Columns of times: numbers, dates as text, and timestamps."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cdr.data import tables
from cdr.data.cells import shown

_ISO = r"^\d{4}-\d\d-\d\d"
_KIND = "a number or an ISO 8601 date or time, such as 2014-01-31 or 2014-01-31T12:30"
_ZONE = r":\d\d.*(Z|[+-]\d\d(:?\d\d)?)$"
_FRACTION = r"(:\d\d:\d\d),(\d+)"
_APART = r"(:\d\d(?:\.\d+)?) ([+-]\d\d(?::?\d\d)?)$"
_UTC = r"(:\d\d(?:\.\d+)?) ?(?:UTC|GMT)$"
_MONTHS = r"^\s*(0?[1-9]|1[0-2])\.(19[89]\d|20\d\d)\s*$"


class Times(NamedTuple):
    """A column of times.

    Args:
        values: Seconds since 1970 of dates and timestamps, numbers as they are, NaN where a time
            is unknown; float64 [n].
        note: What dates and times were read as text; "" if there are none.
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
    _refuse_shortened(table[column], column, path)
    _refuse_months(table[column], column, path)
    # A date has a hyphen, which is quicker to look for.
    if not pc.any(pc.match_substring(table[column], "-")).as_py():
        return Times(tables.numbers(table, column, path, kind=_KIND), "")
    texts = pc.utf8_trim_whitespace(table[column])
    # As databases and logs write them: "2014-01-31 12:30:00,5 +02:00", "2014-01-31 12:30:00 UTC".
    texts = pc.replace_substring_regex(texts, _FRACTION, r"\1.\2")
    texts = pc.replace_substring_regex(texts, _APART, r"\1\2")
    texts = pc.replace_substring_regex(texts, _UTC, r"\1Z")
    iso = pc.fill_null(pc.match_substring_regex(texts, _ISO), False)
    if not pc.any(iso).as_py():
        return Times(tables.numbers(table, column, path, kind=_KIND), "")

    numeric = tables.replace(table, column, pc.if_else(iso, None, texts))
    values = tables.numbers(numeric, column, path, kind=_KIND).copy()
    zoned = pc.and_(iso, pc.fill_null(pc.match_substring_regex(texts, _ZONE), False))
    local = pc.and_(iso, pc.invert(zoned))
    counts = {"numbers": int((~np.isnan(values)).sum())}
    for rows, zone in ((local, None), (zoned, "UTC")):
        values[rows.to_numpy()] = _seconds(texts, rows, zone, table[column], column, path)
    dates = pc.and_(local, pc.equal(pc.utf8_length(texts), len("2014-01-31")))
    num_dates = pc.sum(dates).as_py()
    counts["dates, which count as the first moment of the day in UTC"] = num_dates
    counts["times without a zone, taken as UTC"] = pc.sum(local).as_py() - num_dates
    counts["times with a zone"] = pc.sum(zoned).as_py()
    told = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
    known = values[iso.to_numpy()]
    first, last = (str(np.datetime64(int(end), "s")) for end in (known.min(), known.max()))
    return Times(
        values,
        f"{shown(column)} of {Path(path).name} has {told}: all are read as seconds. Dates and "
        f"times are from {first} to {last} in UTC.",
    )


def _refuse_shortened(texts: pa.ChunkedArray, column: str, path: Path | str) -> None:
    """Refuse numbers in exponential notation with fewer digits than the exponent asks for.

    Raises:
        ValueError: If there is such a number.
    """
    if not pc.any(pc.match_substring(texts, "e+", ignore_case=True)).as_py():
        return
    parts = pc.extract_regex(texts, r"^\s*-?\d(?:[.,](?P<digits>\d*))?[eE]\+(?P<exponent>\d+)\s*$")
    digits = pc.utf8_length(pc.struct_field(parts, "digits"))
    exponent = pc.cast(pc.struct_field(parts, "exponent"), pa.int64())
    shortened = pc.fill_null(pc.less(pc.cast(digits, pa.int64()), exponent), False)
    if pc.any(shortened).as_py():
        row = pc.index(shortened, True).as_py()
        raise ValueError(
            f"{path}: {shown(column)} is {shown(texts[row].as_py())} in row {row + 1} (the "
            "first below the "
            "header is row 1), a number that a spreadsheet has rounded: different times have "
            "become one. Export the table again with all digits, or with dates."
        )


def _refuse_months(texts: pa.ChunkedArray, column: str, path: Path | str) -> None:
    """Refuse months such as 07.2014, which would be read as decimal numbers.

    Raises:
        ValueError: If all times are such months.
    """
    # A column of other numbers shows it by the first few.
    for part in (texts[:100], texts):
        known = part.filter(pc.not_equal(pc.utf8_trim_whitespace(part), ""))
        if len(known) and not pc.all(pc.match_substring_regex(known, _MONTHS)).as_py():
            return
    if not len(known):
        return
    raise ValueError(
        f"{path}: {shown(column)} is {shown(known[0].as_py())} in its first row with a time, "
        "and like this in all others: it looks like a month and a year. Write it as 2014-01-31."
    )


def _seconds(
    texts: pa.ChunkedArray,
    rows: pa.ChunkedArray,
    zone: str | None,
    written: pa.ChunkedArray,
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
            f"{path}: {shown(column)} is {shown(written[row].as_py())} in row {row + 1} (the "
            "first below the "
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
