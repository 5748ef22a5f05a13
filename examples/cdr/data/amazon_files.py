"""The files of Amazon 2014 as they were published: reviews (JSON) and metadata (python literals).

One record a line. Bad lines are left out and counted, never guessed at.
"""

from __future__ import annotations

import ast
import html
import json
import math
import re
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TypeGuard

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from cdr.data.line_files import BadLines, map_blocks
from cdr.data.schema import OTHERS

_FIELDS = pa.schema(
    {
        "reviewerID": pa.string(),
        "asin": pa.string(),
        "overall": pa.float64(),
        "unixReviewTime": pa.int64(),
    }
)
_REVIEWS = pa.schema(
    {"user": pa.string(), "item": pa.string(), "rating": pa.float64(), "time": pa.int64()}
)
_ITEMS = pa.schema({"item": pa.string(), "category": pa.string()})
_TITLES = pa.schema({"item": pa.string(), "title": pa.string()})


def reviews(path: Path) -> pa.Table:
    """The reviews of a domain, in file order.

    Args:
        path: A file like reviews_Books_5.json.gz, or unpacked: JSON objects with reviewerID, asin,
            overall and unixReviewTime (seconds); further fields are ignored.

    Returns:
        The columns user and item (dictionaries of strings), rating (float64) and time (int64).
        :meth:`BadLines.of` tells which lines were left out.

    Raises:
        ValueError: If the file cannot be read or no line of it is a review.
    """
    return _read(path, _parse_reviews, "a review (reviewerID, asin, overall, unixReviewTime)")


def categories(path: Path) -> pa.Table:
    """The category of each item of a domain: ``categories[0][1]``, or "others".

    Args:
        path: A file like meta_Books.json.gz, or unpacked: python dicts with asin and, where they
            are known, categories, a list of paths. Literals only; nothing is executed.

    Returns:
        The columns item and category (dictionaries of strings), an item a row: of lines with the
        same asin the first counts. :meth:`BadLines.of` tells which lines were left out.

    Raises:
        ValueError: If the file cannot be read or no line of it describes an item.
    """
    with _odd_escapes():
        table = _read(path, _parse_items, "an item's metadata (a python dict with asin)")
    numbered = table.append_column("place", pa.array(np.arange(len(table))))
    first = numbered.group_by("item", use_threads=False).aggregate([("place", "first")])
    kept = table.take(first["place_first"])
    return replace(BadLines.of(table), repeated=len(table) - len(kept)).beside(kept)


def titles(path: Path, items: Collection[str]) -> dict[str, str]:
    """The titles of some items, as far as they are known: of each the first that is written.

    Args:
        path: A file as for :func:`categories`. It is read to its end.
        items: Their ids.

    Raises:
        ValueError: If the file cannot be read.
    """

    def title(line: str) -> tuple[str, str] | None:
        asin = _ASIN.match(line)
        if asin is None or _literal(asin[1]) not in items:
            return None
        record = _literal(line)
        if not isinstance(record, dict) or not _is_id(record.get("title")):
            return None
        # Titles come from web pages.
        return record["asin"], html.unescape(record["title"])

    found: dict[str, str] = {}
    with _odd_escapes():
        for table, _ in map_blocks(path, lambda block: _line_by_line(block, title, _TITLES)):
            for row in table.to_pylist():
                found.setdefault(row["item"], row["title"])
    return found


@contextmanager
def _odd_escapes() -> Iterator[None]:
    with warnings.catch_warnings():
        # An unknown escape such as "\d" is an oddity of the data, not of this program.
        warnings.simplefilter("ignore", (DeprecationWarning, SyntaxWarning))
        yield


def _read(path: Path, parse: Callable[[bytes], tuple[pa.Table, BadLines]], kind: str) -> pa.Table:
    parts, bad = [], BadLines()
    for table, left_out in map_blocks(path, parse):
        parts.append(_encoded(table))
        bad += left_out
    if not any(map(len, parts)):
        raise ValueError(
            f"No line of {path} is {kind}; of its {bad.lines:,} lines {bad.count:,} are not blank. "
            "Is it another file under this name?"
        )
    return bad.beside(pa.concat_tables(parts).unify_dictionaries().combine_chunks())


def _encoded(table: pa.Table) -> pa.Table:
    """The table with its strings as dictionaries, a tenth of the memory."""
    columns = {
        name: column.dictionary_encode() if pa.types.is_string(column.type) else column
        for name, column in zip(table.column_names, table.columns, strict=True)
    }
    return pa.table(columns)


def _parse_reviews(block: bytes) -> tuple[pa.Table, BadLines]:
    """All lines at once; if one of them is not a review, or blank, line by line."""
    lines = block.count(b"\n") + (not block.endswith(b"\n"))
    try:
        table = pyarrow.json.read_json(
            pa.BufferReader(block),
            pyarrow.json.ReadOptions(use_threads=False, block_size=len(block) + 1),
            pyarrow.json.ParseOptions(explicit_schema=_FIELDS, unexpected_field_behavior="ignore"),
        ).rename_columns(_REVIEWS.names)
        table.validate(full=True)  # ids are UTF-8
    except pa.ArrowInvalid:
        return _line_by_line(block, _review, _REVIEWS)
    if len(table) != lines or not _complete(table):
        return _line_by_line(block, _review, _REVIEWS)
    return table, BadLines(lines=lines)


def _complete(table: pa.Table) -> bool:
    return not (
        any(column.null_count for column in table.columns)
        or any(pc.any(pc.equal(table[name], "")).as_py() for name in ("user", "item"))
        or not pc.all(pc.is_finite(table["rating"])).as_py()
    )


def _line_by_line(
    block: bytes, parse: Callable[[str], tuple[object, ...] | None], schema: pa.Schema
) -> tuple[pa.Table, BadLines]:
    rows, bad, number = [], [], 0
    for number, line in enumerate(block.removesuffix(b"\n").split(b"\n"), start=1):
        # Only ids and categories need be UTF-8, and they are checked; what else a line holds may
        # be cut anywhere.
        text = line.decode("utf-8-sig", "surrogateescape").strip()
        if text:
            row = parse(text)
            if row is None:
                bad.append(number)
            else:
                rows.append(row)
    columns = zip(*rows, strict=True) if rows else [()] * len(schema)
    table = pa.table(list(map(list, columns)), schema=schema)
    return table, BadLines(len(bad), tuple(bad), number)


def _review(line: str) -> tuple[str, str, float, int] | None:
    try:
        record = json.loads(line)
        user, item, rating, time = (record[name] for name in _FIELDS.names)
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    numbers = (type(rating) in (int, float), type(time) is int)
    if _is_id(user) and _is_id(item) and all(numbers) and math.isfinite(rating):
        return user, item, float(rating), time
    return None


def _is_id(value: object) -> TypeGuard[str]:
    if not isinstance(value, str) or not value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


# A metadata line is a python dict of up to 100 kB, of which two fields are needed. They are found
# by walking from string to string, so that what a description says is never taken for a field,
# and read by themselves: four times as fast as reading the line.
_STRING = r"""(?:'[^'\\]*(?:\\.[^'\\]*)*'|"[^"\\]*(?:\\.[^"\\]*)*")"""
_PLAIN = r"""[^'"]*"""  # what lies between two strings
_WALK = rf"\{{(?:{_PLAIN}{_STRING})*?{_PLAIN}"
_PATH = rf"""\[(?:[^'"\[\]]*{_STRING})*[^'"\[\]]*\]"""
_ASIN = re.compile(rf"""{_WALK}['"]asin['"]\s*:\s*([uU]?{_STRING})""")
_CATEGORIES = re.compile(
    rf"""{_WALK}['"]categories['"]\s*:\s*(\[(?:[^'"\[\]]*{_PATH})*[^'"\[\]]*\])"""
)


def _parse_items(block: bytes) -> tuple[pa.Table, BadLines]:
    return _line_by_line(block, _item, _ITEMS)


def _item(line: str) -> tuple[str, str] | None:
    asin, paths = _ASIN.match(line), _CATEGORIES.match(line)
    if asin and paths and line.endswith("}"):
        item, category = _literal(asin[1]), _category(paths[1])
        if _is_id(item) and category is not None:
            return item, category
    record = _literal(line)
    if not isinstance(record, dict) or not _is_id(record.get("asin")):
        return None
    return record["asin"], _second_level(record.get("categories")) or OTHERS


@lru_cache(maxsize=1 << 16)  # a domain has some thousand different values
def _category(paths: str) -> str | None:
    """The category of paths as they are written; None if they cannot be read."""
    levels = _literal(paths)
    return None if levels is None else _second_level(levels) or OTHERS


def _second_level(paths: object) -> str | None:
    try:
        name = paths[0][1]  # type: ignore[index]
    except (LookupError, TypeError):
        return None
    return name if _is_id(name) else None


def _literal(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
