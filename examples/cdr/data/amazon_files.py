"""The files of Amazon 2014 as they were published: reviews (JSON) and metadata (python literals).

One record a line. Bad lines are left out and counted, never guessed at.
"""

from __future__ import annotations

import html
import json
import math
import re
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from cdr.data.limits import LIMITS, Limits
from cdr.data.line_files import BadLines, map_blocks
from cdr.data.literals import STRING, is_text, literal
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


def reviews(path: Path, limits: Limits = LIMITS) -> pa.Table:
    """The reviews of a domain, in file order.

    Args:
        path: A file like reviews_Books_5.json.gz, or unpacked: JSON objects with reviewerID, asin,
            overall and unixReviewTime (seconds); further fields are ignored.
        limits: Of the file. A line that is nested more deeply is left out.

    Returns:
        The columns user and item (dictionaries of strings), rating (float64) and time (int64).
        :meth:`BadLines.of` tells which lines were left out.

    Raises:
        ValueError: If the file cannot be read or no line of it is a review.
    """
    kind = "a review (reviewerID, asin, overall, unixReviewTime)"
    return _read(path, lambda block: _parse_reviews(block, limits), kind, limits)


def categories(path: Path, limits: Limits = LIMITS) -> pa.Table:
    """The category of each item of a domain: ``categories[0][1]``, or "others".

    Args:
        path: A file like meta_Books.json.gz, or unpacked: python dicts with asin and, where they
            are known, categories, a list of paths. Literals only; nothing is executed.
        limits: Of the file. A line that is nested more deeply is left out.

    Returns:
        The columns item and category (dictionaries of strings), an item a row: of lines with the
        same asin the first counts. :meth:`BadLines.of` tells which lines were left out.

    Raises:
        ValueError: If the file cannot be read or no line of it describes an item.
    """
    with _odd_escapes():
        kind = "an item's metadata (a python dict with asin)"
        table = _read(path, lambda block: _parse_items(block, limits), kind, limits)
    numbered = table.append_column("place", pa.array(np.arange(len(table))))
    first = numbered.group_by("item", use_threads=False).aggregate([("place", "first")])
    kept = table.take(first["place_first"])
    return replace(BadLines.of(table), repeated=len(table) - len(kept)).beside(kept)


def titles(path: Path, items: Collection[str], limits: Limits = LIMITS) -> dict[str, str]:
    """The titles of some items, as far as they are known: of each the first that is written.

    Args:
        path: A file as for :func:`categories`. It is read to its end.
        items: Their ids.
        limits: Of the file.

    Raises:
        ValueError: If the file cannot be read.
    """

    def title(line: str) -> tuple[str, str] | None:
        asin = _ASIN.match(line)
        if asin is None or literal(asin[1], limits.max_nesting) not in items:
            return None
        record = literal(line, limits.max_nesting)
        if not isinstance(record, dict) or not is_text(record.get("asin")):
            return None
        if not is_text(record.get("title")):
            return None
        # Titles come from web pages.
        return record["asin"], html.unescape(record["title"])

    found: dict[str, str] = {}
    with _odd_escapes():
        parsed = map_blocks(path, lambda block: _line_by_line(block, title, _TITLES), limits)
        for table, _ in parsed:
            for row in table.to_pylist():
                found.setdefault(row["item"], row["title"])
    return found


@contextmanager
def _odd_escapes() -> Iterator[None]:
    with warnings.catch_warnings():
        # An unknown escape such as "\d" is an oddity of the data, not of this program.
        warnings.simplefilter("ignore", (DeprecationWarning, SyntaxWarning))
        yield


def _read(
    path: Path, parse: Callable[[bytes], tuple[pa.Table, BadLines]], kind: str, limits: Limits
) -> pa.Table:
    parts, bad, size = [], BadLines(), 0
    for table, left_out in map_blocks(path, parse, limits):
        parts.append(_encoded(table))
        size += parts[-1].nbytes
        limits.refuse_memory(path, size)
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


def _parse_reviews(block: bytes, limits: Limits) -> tuple[pa.Table, BadLines]:
    """All lines at once; if one of them is not a review, or blank, line by line."""
    lines = block.count(b"\n") + (not block.endswith(b"\n"))
    if not _are_flat_objects(block, lines, limits.max_nesting):
        return _line_by_line(block, partial(_review, limits.max_nesting), _REVIEWS)
    try:
        table = pyarrow.json.read_json(
            pa.BufferReader(block),
            pyarrow.json.ReadOptions(use_threads=False, block_size=len(block) + 1),
            pyarrow.json.ParseOptions(explicit_schema=_FIELDS, unexpected_field_behavior="ignore"),
        ).rename_columns(_REVIEWS.names)
        table.validate(full=True)  # ids are UTF-8
    except pa.ArrowException:
        return _line_by_line(block, partial(_review, limits.max_nesting), _REVIEWS)
    if len(table) != lines or not _complete(table):
        return _line_by_line(block, partial(_review, limits.max_nesting), _REVIEWS)
    return table, BadLines(lines=lines)


_NOT_STRUCTURE = bytes(set(range(256)) - set(b"[]{}\n"))
_STEPS = np.zeros(256, dtype=np.int32)
_STEPS[list(b"[{")], _STEPS[list(b"]}")] = 1, -1


def _are_flat_objects(block: bytes, lines: int, max_nesting: int) -> bool:
    """Whether every line looks like one object that is not nested too deeply.

    pyarrow's parser ends the process at a line "null", and at tens of thousands of brackets.
    """
    if not block.startswith(b"{") or block.count(b"\n{") != lines - 1:
        return False
    signs = np.frombuffer(block.translate(None, _NOT_STRUCTURE), np.uint8)
    # Brackets within texts count as well: a block with many of them is read line by line.
    depth = np.cumsum(_STEPS[signs])
    starts = np.flatnonzero(np.concatenate([[True], signs[:-1] == ord("\n")]))
    spans = np.maximum.reduceat(depth, starts) - np.minimum.reduceat(depth, starts)
    return int(spans.max()) <= max_nesting


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


def _review(max_nesting: int, line: str) -> tuple[str, str, float, int] | None:
    if not line.startswith("{"):
        return None
    if line.count("[") + line.count("{") > max_nesting and _is_deep(line, max_nesting):
        return None
    try:
        record = json.loads(line)
        user, item, rating, time = (record[name] for name in _FIELDS.names)
        rating = float(rating) if type(rating) is int else rating
    except (ValueError, LookupError, TypeError, RecursionError, OverflowError):
        return None
    numbers = type(rating) is float and math.isfinite(rating) and type(time) is int
    if is_text(user) and is_text(item) and numbers and -_SECONDS <= time < _SECONDS:
        return user, item, rating, time
    return None


_SECONDS = 1 << 63  # what an int64 holds
_BETWEEN = re.compile(r"[^\[\]{}]+")
_JSON_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"')


def _is_deep(line: str, max_nesting: int) -> bool:
    """Whether brackets outside of texts are nested more deeply."""
    depth = 0
    for sign in _BETWEEN.sub("", _JSON_STRING.sub("", line)):
        depth += 1 if sign in "[{" else -1
        if depth > max_nesting:
            return True
    return False


# A metadata line is a python dict of up to 100 kB, of which two fields are needed. They are found
# by walking from string to string, so that what a description says is never taken for a field,
# and read by themselves: four times as fast as reading the line.
_PLAIN = r"""[^'"]*"""  # what lies between two strings
_WALK = rf"\{{(?:{_PLAIN}{STRING})*?{_PLAIN}"
_PATH = rf"""\[(?:[^'"\[\]]*{STRING})*[^'"\[\]]*\]"""
_ASIN = re.compile(rf"""{_WALK}['"]asin['"]\s*:\s*([uU]?{STRING})""")
_CATEGORIES = re.compile(
    rf"""{_WALK}['"]categories['"]\s*:\s*(\[(?:[^'"\[\]]*{_PATH})*[^'"\[\]]*\])"""
)


def _parse_items(block: bytes, limits: Limits) -> tuple[pa.Table, BadLines]:
    return _line_by_line(block, partial(_item, limits.max_nesting), _ITEMS)


def _item(max_nesting: int, line: str) -> tuple[str, str] | None:
    asin, paths = _ASIN.match(line), _CATEGORIES.match(line)
    if asin and paths and line.endswith("}"):
        item, category = literal(asin[1], max_nesting), _category(paths[1], max_nesting)
        if is_text(item) and category is not None:
            return item, category
    record = literal(line, max_nesting)
    if not isinstance(record, dict) or not is_text(record.get("asin")):
        return None
    return record["asin"], _second_level(record.get("categories")) or OTHERS


@lru_cache(maxsize=1 << 16)  # a domain has some thousand different values
def _category(paths: str, max_nesting: int) -> str | None:
    """The category of paths as they are written; None if they cannot be read."""
    levels = literal(paths, max_nesting)
    return None if levels is None else _second_level(levels) or OTHERS


def _second_level(paths: object) -> str | None:
    try:
        name = paths[0][1]  # type: ignore[index]
    except (LookupError, TypeError):
        return None
    return name if is_text(name) else None
