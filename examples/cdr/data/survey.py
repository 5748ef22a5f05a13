"""A look at a whole table of text before it is parsed: its size, its lines and its quotes.

The parser takes any quote at the beginning of a value for that of a quoted text, and reads on to
the next quote, however many rows later that comes.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cdr.data.cells import shown
from cdr.data.dialect import Dialect, header_names, lines_of, plain_name
from cdr.data.limits import Limits
from cdr.data.unpacking import blocks, line_ends

# Columns of numbers, by which a row is told from a line of prose.
_NUMBERS = ("rating", "timestamp", "label", "order")
_STRAY = (
    "If it is no quote around a text, write it twice and put the value in quotes, or remove it."
)


@dataclass(frozen=True)
class Survey:
    """What a table of text is.

    Args:
        size: Its bytes, unpacked.
        lines: Those that are not empty.
        longest: Bytes of its longest row.
    """

    size: int
    lines: int
    longest: int


def survey(path: Path, dialect: Dialect, limits: Limits) -> Survey:
    """Read a file once, in blocks, and refuse what would be read as something else.

    Args:
        path: A text file, gzipped if its name ends in .gz.
        dialect: How it is written.
        limits: Of its size and its rows.

    Raises:
        ValueError: It is beyond the limits, has a NUL byte, or a quote without a counterpart.
        OSError: It cannot be read.
    """
    quotes = _Quotes(path, dialect, limits) if dialect.quoted else None
    size, lines, longest, rest, line = 0, 0, 0, b"", 1
    for block in blocks(path, limits, returns=True):
        block = block if size else block.removeprefix(codecs.BOM_UTF8)
        size += len(block)
        if b"\0" in block:
            place = line + line_ends(rest) + line_ends(block[: block.index(b"\0")])
            raise ValueError(f"{path} has a NUL byte in line {place:,}, as no text has.")
        count, length = _lines(block)
        lines, longest = lines + count, max(longest, length)
        text = rest + block
        end = len(text) if quotes is None else quotes.end_of_rows(text, line)
        if len(text) - end > limits.line:
            raise limits.too_long(path, line + line_ends(text[:end]), _STRAY)
        longest, rest = max(longest, len(text) - end), text[end:]
        line += line_ends(text[:end])
    if rest:
        raise ValueError(
            f"{path}: the quote before {shown(_after_quote(rest, dialect))} in the row that begins "
            f"on line {line:,} has no counterpart up to the end of the file. {_STRAY}"
        )
    return Survey(size, lines, longest)


def _lines(block: bytes) -> tuple[int, int]:
    """How many lines of a block are not empty, and the bytes of its longest one."""
    characters = np.frombuffer(block, np.uint8)
    is_end = (characters == ord("\n")) | (characters == ord("\r"))
    lengths = np.diff(np.flatnonzero(is_end), prepend=-1, append=len(block)) - 1
    return int((lengths > 0).sum()), int(lengths.max())


def _after_quote(row: bytes, dialect: Dialect) -> str:
    found = re.search(_opening(dialect), row)
    return _text(row[found.end() :] if found else row)


def _text(row: bytes) -> str:
    return row[:400].decode("utf-8", "replace")


def _opening(dialect: Dialect) -> bytes:
    return rb"(?:^|(?<=[\r\n" + re.escape(dialect.separator.encode()) + rb']))"'


class _Quotes:
    """Finds the rows of a file with quoted texts."""

    def __init__(self, path: Path, dialect: Dialect, limits: Limits) -> None:
        self._path, self._dialect, self._limits = path, dialect, limits
        self._separator = dialect.separator.encode()
        self._opening = re.compile(_opening(dialect))
        self._closing = re.compile(rb'[^"]*(?:""[^"]*)*"(?!")')
        self._header: Sequence[str] = ()

    def end_of_rows(self, text: bytes, line: int) -> int:
        """Where the last row ends that is whole, given that the text begins with a row.

        Args:
            text: Whole lines.
            line: The number of its first one.

        Raises:
            ValueError: A quote has no counterpart.
        """
        if not self._header:
            self._header = self._names(text, line)
        if b'"' not in text or self._all_are_whole(text):
            return len(text)
        place = row = 0
        while found := self._opening.search(text, place):
            before = (text.rfind(end, place, found.start()) for end in (b"\n", b"\r"))
            row = max(row, max(before) + 1)
            closed = self._closing.match(text, found.end())
            if closed is None:
                return row
            place = closed.end()
            if place - found.start() > self._limits.line:
                number = line + line_ends(text[: found.start()])
                raise self._limits.too_long(self._path, number, _STRAY)
            if text[place : place + 1] not in (b"", b"\n", b"\r", self._separator):
                raise self._stray(text, found.start(), place, line)
            value = text[found.end() : place - 1]
            if (b"\n" in value or b"\r" in value) and self._holds_rows(value):
                raise self._swallowed(text, found.start(), value, line)
        return len(text)

    def _names(self, text: bytes, line: int) -> Sequence[str]:
        lines = lines_of(text)
        skipped = self._dialect.skipped if line == 1 else 0
        header = lines[skipped] if len(lines) > skipped else ""
        return [plain_name(name) for name in header_names(header, self._dialect.separator)]

    def _all_are_whole(self, text: bytes) -> bool:
        """Whether every quote stands where one belongs, and no quoted text has a line end.

        All at once, in far less time than quote by quote.
        """
        characters = np.frombuffer(b"\n" + text + b"\n", np.uint8)
        is_quote = characters == ord('"')
        places = np.flatnonzero(is_quote)
        if len(places) % 2:
            return False
        ends = (characters == ord("\n")) | (characters == ord("\r"))
        between = ends | (characters == self._separator[0])
        opens, closes = places[::2], places[1::2]
        # A doubled quote closes a text and opens it again.
        doubled = opens[1:] == closes[:-1] + 1
        begins = between[opens - 1]
        begins[1:] |= doubled
        stops = between[closes + 1]
        stops[:-1] |= doubled
        if not (begins.all() and stops.all()):
            return False
        line = np.cumsum(ends)
        return bool((line[opens] == line[closes]).all())

    def _holds_rows(self, value: bytes) -> bool:
        """Whether all lines within a quoted text look like rows: then its quotes are stray ones."""
        inner = [each for each in value.splitlines()[1:-1] if each]
        return bool(inner) and all(map(self._is_row, inner))

    def _is_row(self, line: bytes) -> bool:
        fields = line.split(self._separator)
        if len(fields) != len(self._header) or len(fields) < 2:
            return False
        pairs = zip(self._header, fields, strict=True)
        numbers = [field for name, field in pairs if name in _NUMBERS]
        return any(numbers) and all(map(_is_number, numbers))

    def _stray(self, text: bytes, start: int, place: int, line: int) -> ValueError:
        after = _text(text[place:].splitlines()[0])
        return ValueError(
            f"{self._path}: a quoted text that begins in line {line + line_ends(text[:start]):,} "
            f"ends before {shown(after)}, in line {line + line_ends(text[:place]):,}, where "
            "neither "
            f"a separator nor a line end follows: one of its quotes is a stray one. {_STRAY}"
        )

    def _swallowed(self, text: bytes, start: int, value: bytes, line: int) -> ValueError:
        number = line + line_ends(text[:start])
        return ValueError(
            f"{self._path}: the quote before {shown(_text(value.splitlines()[0]))} in line "
            f"{number:,} has its counterpart in line {number + line_ends(value):,}, and the lines "
            f"between look like rows, which would be lost. {_STRAY}"
        )


def _is_number(text: bytes) -> bool:
    try:
        float(text or b"0")
    except ValueError:
        return False
    return True


def first_not_utf8(path: Path, limits: Limits) -> tuple[int, str] | None:
    """The first line that is not UTF-8, its number and what it holds there; None without one."""
    line = 1
    for block in blocks(path, limits, returns=True):
        try:
            block.decode("utf-8")
        except UnicodeDecodeError as error:
            around = block[max(0, error.start - 20) : error.start + 20].splitlines()
            cell = max(around, key=lambda part: not part.isascii())
            return line + line_ends(block[: error.start]), shown(cell.decode("utf-8", "replace"))
        line += line_ends(block)
    return None
