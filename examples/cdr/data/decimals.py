"""Numbers that are written with a decimal comma."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from cdr.data import tables
from cdr.data.cells import shown

_COMMA = r"^\s*[+-]?\d+,\d+\s*$"
_GROUPED = r"^\s*[+-]?[1-9]\d{0,2},\d{3}\s*$"


def with_points(table: pa.Table, column: str, path: Path | str) -> tuple[pa.Table, str]:
    """The table with decimal points in a column, and a note if it had decimal commas; else "".

    Args:
        table: The table.
        column: Its column; one that is no text is left as it is.
        path: Of the file, for messages.

    Raises:
        ValueError: If commas may be decimal commas or group thousands, or some numbers have a
            comma and others a point.

    Example:
        >>> table, note = with_points(pa.table({"rating": ["4,5", "3"]}), "rating", "log.csv")
        >>> table["rating"].to_pylist(), note
        (['4.5', '3'], "'rating' of log.csv has 1 number with a decimal comma.")
    """
    values = table[column]
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        return table, ""
    if not pc.any(pc.match_substring(values, ",")).as_py():
        return table, ""
    commas = pc.fill_null(pc.match_substring_regex(values, _COMMA), False)
    count = pc.sum(commas).as_py()
    if not count:
        return table, ""
    first = pc.index(commas, True).as_py()
    told = f"{path}: {shown(column)} is {shown(values[first].as_py())} in row {first + 1} (the "
    told += "first below the header is row 1)"
    if pc.all(pc.match_substring_regex(values.filter(commas), _GROUPED)).as_py():
        raise ValueError(
            f"{told}, whose comma may be a decimal comma or group thousands: write the numbers of "
            "the column without grouping, and with a decimal point."
        )
    points = pc.fill_null(pc.match_substring_regex(values, r"^\s*[+-]?\d+\.\d*\s*$"), False)
    if pc.any(points).as_py():
        other = pc.index(points, True).as_py()
        raise ValueError(
            f"{told} and {shown(values[other].as_py())} in row {other + 1}: write all numbers "
            "of the column with a decimal point."
        )
    replaced = pc.if_else(commas, pc.replace_substring(values, ",", "."), values)
    numbers = f"{count:,} number{'s' * (count != 1)} with a decimal comma"
    return tables.replace(
        table, column, replaced
    ), f"{shown(column)} of {Path(path).name} has {numbers}."
