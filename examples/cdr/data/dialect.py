"""How a file of separated values is written: its separator, and where its header is."""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from cdr.data.unpacking import opened

NAMES = {",": "comma", ";": "semicolon", "\t": "tab", "|": "|", "::": "::"}
"""The separators that are guessed, in words."""

_HEAD = 1 << 16  # bytes: more than any header
_SEP_LINE = re.compile(r'"?sep=(.)"?$')  # Excel writes and reads such a first line


@dataclass(frozen=True)
class Dialect:
    """How a text file is written.

    Args:
        separator: Between columns.
        skipped: Lines above the header.
        fixed: Whether the format says how: no option sets the separator, and there are no quotes.
    """

    separator: str
    skipped: int = 0
    fixed: bool = False

    @property
    def quoted(self) -> bool:
        """Whether a value may be in quotes; files with "::" quote nothing."""
        return not self.fixed and self.separator != "::"

    @property
    def name(self) -> str:
        """The separator, in words."""
        return NAMES.get(self.separator, repr(self.separator))


def separator_of(text: str) -> str:
    r"""The separator that an option names.

    Args:
        text: "comma", "semicolon", "tab" or "\\t", "::", or one character.

    Raises:
        ValueError: It can't separate columns.

    Example:
        >>> separator_of("tab"), separator_of("^")
        ('\t', '^')
    """
    words = {"comma": ",", "semicolon": ";", "tab": "\t", "\\t": "\t", "::": "::"}
    found = words.get(text, text)
    if found in NAMES:
        return found
    if len(found) != 1 or not 32 <= ord(found) < 127 or found.isalnum() or found in "\"'.-+_":
        raise ValueError(
            f"--separator {text!r} cannot separate columns; give comma, semicolon, tab, '|', '::' "
            "or another single character that is neither a letter, a digit nor a quote."
        )
    return found


def dialect_of(path: Path, columns: Collection[str], separator: str | None = None) -> Dialect:
    """The way in which a file is written.

    The separator is the one that finds the most of the columns in the header, whatever the rows
    look like: decimal commas and texts with commas in them do not mislead it.

    Args:
        path: A text file, gzipped if its name ends in .gz.
        columns: Names that the header may have, in any case.
        separator: The separator, if it is known.

    Raises:
        ValueError: If the text is in an encoding that is not read.
        OSError: If the file cannot be read or decompressed.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "log.csv"
        >>> _ = path.write_text("User;Item;Rating\\nann;a, b;4,5\\n")
        >>> dialect_of(path, ("user", "item", "rating")).name
        'semicolon'
    """
    with opened(path) as stream:
        head: bytes = stream.read(_HEAD)
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in head.partition(b"\n")[0]:
        raise ValueError(
            f'{path} is not written in UTF-8: it is UTF-16, as Excel\'s "Unicode text", or no '
            'text at all. Save it as UTF-8 (in Excel: "CSV UTF-8").'
        )
    lines = lines_of(head)
    skipped, announced = 0, _SEP_LINE.match(lines[0]) if lines else None
    if announced is not None:
        skipped, lines = 1, lines[1:]
        separator = separator or _announced(announced[1], path)
    if separator is None:
        header = lines[0] if lines else ""
        separator = max(NAMES, key=lambda each: _fit(header_names(header, each), columns))
    return Dialect(separator, skipped)


def _announced(character: str, path: Path) -> str:
    try:
        return separator_of(character)
    except ValueError:
        raise ValueError(
            f"{path} begins with sep={character!a}, which cannot separate columns: remove the "
            "line, and give --separator."
        ) from None


def lines_of(text: bytes) -> list[str]:
    """The lines of a text that are not empty, as the parser tells lines apart."""
    bare = text.removeprefix(codecs.BOM_UTF8)
    return [line.decode("utf-8", "replace") for line in bare.splitlines() if line]


def header_names(header: str, separator: str) -> list[str]:
    """The names in a header."""
    if separator == "::":
        return header.split(separator)
    return next(csv.reader([header], delimiter=separator), [])


def _fit(names: Sequence[str], columns: Collection[str]) -> tuple[int, int]:
    plain = [plain_name(name) for name in names]
    return sum(column in plain for column in columns), len(plain)


def plain_name(name: str) -> str:
    """A column's name without what does not matter in it: upper case and blanks around it."""
    return name.strip().casefold()
