"""Files as programs write them: separators, quotes, encodings, decimal commas, heads."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cdr.data import CrossDomainData, load

HEADS = ["user", "item", "rating", "timestamp", "domain"]
ROWS = [
    ["007", "a", "5", "1", "books"],
    ["007", "b", "3", "2", "books"],
    ["007", "x", "4.5", "3", "films"],
    ["007", "y", "1", "4", "films"],
    ["007", "z", "4", "5", "films"],
    ["8", "a", "2", "", "books"],
    ["8", "x", "5", "7", "films"],
]


def written(separator: str = ",", rows: list[list[str]] = ROWS, heads: list[str] = HEADS) -> str:
    return "".join(separator.join(row) + "\n" for row in [heads, *rows])


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., CrossDomainData]:
    """The scenario of a file with some content."""

    def call(content: str | bytes, name: str = "log.csv", **options: object) -> CrossDomainData:
        as_bytes = content.encode() if isinstance(content, str) else content
        (tmp_path / name).write_bytes(as_bytes)
        return load(name, tmp_path, "books", "films", **options)

    return call


Read = Callable[..., CrossDomainData]


def rows_of(data: CrossDomainData) -> list[object]:
    parts = (data.source, data.train, data.valid, data.test)
    columns = [c.tolist() for part in parts for c in (part.user, part.item, part.label)]
    times = [np.nan_to_num(t.numpy(), nan=-1).tolist() for t in vars(data.times).values()]
    ids = [data.user_ids.tolist(), data.source_items.ids.tolist(), data.target_items.ids.tolist()]
    return [*columns, *times, *ids]


def notes_on_file(data: CrossDomainData) -> list[str]:
    return [note for note in data.notes if "log.csv" in note]


SAME = {
    "semicolons": written(";"),
    "tabs": written("\t"),
    "bars": written("|"),
    "double colons": written("::"),
    "a caret, named": (written("^"), {"separator": "^"}),
    "Windows lines": written().replace("\n", "\r\n"),
    "old Mac lines": written().replace("\n", "\r"),
    "a byte order mark": "\ufeff" + written(),
    "a mark and semicolons": "\ufeff" + written(";").replace("\n", "\r\n"),
    "quotes": re.sub(r"[^,\n]+", lambda found: f'"{found[0]}"', written()),
    "quotes and semicolons": re.sub(r"[^;\n]+", lambda found: f'"{found[0]}"', written(";")),
    "Excel's first line": "sep=;\r\n" + written(";"),
    "the same behind a mark": "\ufeffsep=;\r\n" + written(";"),
    "heads in other cases": written(heads=["User", "ITEM", " Rating ", "TimeStamp", "Domain"]),
    "blank lines": written().replace("\n", "\n\n"),
    "no last line end": written().rstrip("\n"),
    "a column of row numbers": "".join(
        f"{n},{line}\n" if n else f",{line}\n" for n, line in enumerate(written().splitlines())
    ),
    "decimal commas": written(";").replace("4.5", "4,5"),
    "quoted decimal commas": written().replace("4.5", '"4,5"'),
    "texts with commas": "".join(
        f"{line};{'title' if not n else 'a, b, c, d, e, f'}\n"
        for n, line in enumerate(written(";").splitlines())
    ),
    "texts with line breaks": "".join(
        f"{line},{'title' if not n else chr(34) + 'one' + chr(10) + 'two' + chr(34)}\n"
        for n, line in enumerate(written().splitlines())
    ),
}


@pytest.mark.parametrize("how", SAME)
def test_files_written_in_other_ways_read_the_same(how: str, read: Read) -> None:
    content, options = SAME[how] if isinstance(SAME[how], tuple) else (SAME[how], {})
    assert rows_of(read(content, **options)) == rows_of(read(written()))


@pytest.mark.parametrize("ending", ["csv.gz", "tsv", "tsv.gz", "dat", "txt"])
def test_other_endings_of_text_files_are_read(ending: str, read: Read) -> None:
    content = written("\t").encode()
    packed = gzip.compress(content) if ending.endswith("gz") else content
    assert rows_of(read(packed, f"log.{ending}")) == rows_of(read(written()))


@pytest.mark.parametrize(
    ("separator", "word"), [(";", "semicolon"), ("\t", "tab"), ("|", "|"), ("::", "::")]
)
def test_a_separator_that_was_guessed_is_said(separator: str, word: str, read: Read) -> None:
    (note,) = notes_on_file(read(written(separator)))
    assert f"separator {word}," in note and "--separator" in note
    assert notes_on_file(read(written())) == []
    assert notes_on_file(read(written(separator), separator=separator)) == []


def test_decimal_commas_are_said(read: Read) -> None:
    _, note = notes_on_file(read(written(";").replace("4.5", "4,5")))
    assert note == "'rating' of log.csv has 1 number with a decimal comma."


def test_continued_lines_are_counted(read: Read) -> None:
    (note,) = notes_on_file(read(SAME["texts with line breaks"]))
    assert note.startswith("7 lines of log.csv are the continuation of a quoted text")


def with_row(row: str, separator: str = ",") -> str:
    return written(separator) + row + "\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (with_row("9;c;4,5;1;books;;", ";"), "different numbers of columns.*separator semicolon"),
        (with_row("9,c,4,5,1,books"), "different numbers of columns.*separator comma"),
        (with_row("9;c;1,000;1;books", ";").replace("4.5", "4"), "group thousands"),
        (with_row("9;c;4,5;1;books", ";"), "'4,5' in row 8 .*and '4.5' in row 3"),
        (with_row("9;c;1.234,5;1;books", ";").replace("4.5", "4"), "'1.234,5' in row 8"),
        (with_row("1.23457E+11,c,4,1,books"), "'user' holds '1.23457E.11'.*spreadsheet"),
        (with_row('9,"c,4,1,books\n9,d",4,1,books'), "columns|line break"),
        (
            with_row('9\t"c\t4\t1\tbooks\n9\t"d\t4\t1\tbooks', "\t"),
            "begins in line 9 ends before 'd.*in line 10.*stray",
        ),
        (written(heads=["user", "item", "rating", "Domain", "DOMAIN"]), "'domain' 2 times"),
        (written(heads=["user", "rating", "rating", "timestamp", "domain"]), "'rating' 2 times"),
        (written().partition("\n")[2], "no column 'user'.*its first line has '007'.*add it.$"),
        (written("#"), "no column 'user'.*--separator sets another"),
        (written().encode("utf-16"), "UTF-16.*CSV UTF-8"),
        (with_row("ü,c,4,1,books").encode("cp1252"), "not written in UTF-8: save it"),
        (with_row("9,c,4,31.01.2014,books"), "'31.01.2014' in row 8.*such as 2014-01-31"),
    ],
)
def test_what_cannot_be_read_for_certain_is_refused(
    content: str | bytes, words: str, read: Read
) -> None:
    with pytest.raises(ValueError, match=words):
        read(content)


@pytest.mark.parametrize("separator", ["", "ab", "e", "5", '"', "\n", "."])
def test_a_separator_that_is_none_is_refused(separator: str, read: Read) -> None:
    with pytest.raises(ValueError, match="--separator .* cannot separate columns"):
        read(written(), separator=separator)


def test_a_wrong_separator_is_told(read: Read) -> None:
    with pytest.raises(ValueError, match=r"read with the separator semicolon.*--separator"):
        read(written(), separator="semicolon")


def test_the_table_of_items_has_a_separator_of_its_own(read: Read, tmp_path: Path) -> None:
    items = tmp_path / "items.csv"
    items.write_text("Item;Category\na;novel, crime\nb;\nx;\ny;\nz;\n")
    data = read(written("|"), items=items, separator="|")
    assert data.source_items.category_names == ("novel, crime", "others")
    assert any("items.csv is read with the separator semicolon" in note for note in data.notes)
