"""Csv and parquet files: some of their columns, and what has to be said of how they were read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from cdr.data.dialect import Dialect, dialect_of, lines_if_quoted, plain_name, separator_of

_TEXT = (".csv", ".tsv", ".dat", ".txt")
ENDINGS = (*_TEXT, *(f"{ending}.gz" for ending in _TEXT), ".parquet")
"""What the names of files end in that are read as tables."""

_ONE_CHARACTER = b"\x1f"  # stands for "::", which the parser does not know: it separates units


class FileTable(NamedTuple):
    """Columns of a file.

    Args:
        table: The columns; of a text file strings, "" where empty.
        notes: Sentences on how the file was read.
    """

    table: pa.Table
    notes: tuple[str, ...]


def read(
    path: Path | str,
    columns: Sequence[str],
    optional: Sequence[str] = (),
    *,
    separator: str | None = None,
    hints: Mapping[str, str] | None = None,
) -> FileTable:
    """Columns of a csv or parquet file, found by their names in any case.

    Args:
        path: A file whose name ends as :data:`ENDINGS` say.
        columns: Columns the file must have.
        optional: Columns to read if the file has them.
        separator: See :func:`cdr.data.dialect.separator_of`; if left out, it is guessed.
        hints: What to tell, by column, where it is missing.

    Returns:
        The table of these columns, under the names asked for.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is of another kind, cannot be read, lacks a column, has one twice or has
            no rows.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}; check the path to the data.")
    if not path.name.endswith(ENDINGS):
        raise ValueError(f"{path} ends in none of {', '.join(ENDINGS)}; convert it to one.")
    is_text = path.suffix != ".parquet"
    if separator is not None:
        separator = separator_of(separator)
        if not is_text:
            raise ValueError(
                f"--separator {separator!r}: {path} is a parquet file, which has none; leave it out"
            )
    wanted = (*columns, *optional)
    dialect = None
    try:
        if is_text:
            dialect = dialect_of(path, wanted, separator)
            with pyarrow.csv.open_csv(_stream(path, dialect), **_settings(dialect)) as reader:
                names = reader.schema.names
        else:
            names = pyarrow.parquet.read_schema(path).names
        found = _found(names, wanted, path)
        _refuse_missing(columns, found, names, path, dialect, hints or {})
        if dialect is None:
            table = pyarrow.parquet.read_table(path, columns=list(found.values()))
        else:
            as_strings = pyarrow.csv.ConvertOptions(
                include_columns=list(found.values()),
                column_types=dict.fromkeys(found.values(), pa.string()),
            )
            table = pyarrow.csv.read_csv(
                _stream(path, dialect), convert_options=as_strings, **_settings(dialect)
            )
    except (pa.ArrowInvalid, OSError, EOFError) as error:
        raise _unreadable(path, error, dialect) from error
    table = table.select(list(found.values())).rename_columns(list(found))
    if not len(table):
        raise ValueError(f"{path} has a header but no rows; write it again.")
    return FileTable(table, () if dialect is None else _notes(path, dialect, separator, table))


def _stream(path: Path, dialect: Dialect) -> pa.NativeFile:
    stream = pa.input_stream(str(path))
    if dialect.separator != "::":
        return stream
    with stream:
        content: bytes = stream.read()
    if _ONE_CHARACTER in content:
        raise ValueError(f"{path} has the control character 0x1f in it, so that it cannot be read.")
    return pa.BufferReader(content.replace(b"::", _ONE_CHARACTER))


def _settings(dialect: Dialect) -> dict[str, object]:
    by_two = dialect.separator == "::"  # such files quote nothing
    return {
        "read_options": pyarrow.csv.ReadOptions(skip_rows=dialect.skipped),
        "parse_options": pyarrow.csv.ParseOptions(
            delimiter=_ONE_CHARACTER.decode() if by_two else dialect.separator,
            quote_char=False if by_two else '"',
            # Else the file may be cut into blocks at a line break within a quoted text.
            newlines_in_values=True,
        ),
    }


def _found(names: Sequence[str], wanted: Sequence[str], path: Path) -> dict[str, str]:
    """The name in the file of each column wanted, as far as it is there."""
    found = {}
    for column in wanted:
        alike = [name for name in names if name == column]
        alike = alike or [name for name in names if plain_name(name) == column]
        if len(alike) > 1:
            raise ValueError(
                f"{path} has the column {column!r} {len(alike)} times (as "
                f"{', '.join(map(repr, alike))}); leave one of them."
            )
        if alike:
            found[column] = alike[0]
    return found


def _refuse_missing(
    columns: Sequence[str],
    found: Mapping[str, str],
    names: Sequence[str],
    path: Path,
    dialect: Dialect | None,
    hints: Mapping[str, str],
) -> None:
    missing = [column for column in columns if column not in found]
    if not missing:
        return
    shown = [repr(name if len(name) <= 40 else f"{name[:39]}…") for name in names[:20]]
    more = f" and {len(names) - 20:,} more" if len(names) > 20 else ""
    read_with = f" (read with the separator {dialect.name})" if dialect else ""
    # Where most columns are missing, the cause is another one.
    hints = hints if len(missing) == 1 or 2 * len(missing) <= len(columns) else {}
    told = " ".join(hints[name] for name in missing if name in hints)
    raise ValueError(
        f"{path} has no column {' and no column '.join(map(repr, missing))}; its first line has "
        f"{', '.join(shown)}{more}{read_with}. Rename or add it"
        + ("; --separator sets another separator." if len(names) == 1 and dialect else ".")
        + (f" {told}" if told else "")
    )


def _unreadable(path: Path, error: Exception, dialect: Dialect | None) -> ValueError:
    told = " ".join(str(error).split())
    told = told if len(told) <= 200 else f"{told[:199]}…"
    advice = "It is empty, cut off or not what its name says: write it again."
    if "UTF8" in str(error):
        advice = 'It is not written in UTF-8: save it as UTF-8 (in Excel: "CSV UTF-8").'
    elif "Expected" in str(error) and dialect is not None:
        advice = (
            f"Its lines have different numbers of columns, read with the separator {dialect.name}: "
            "quote texts that hold the separator, or set another one with --separator."
        )
    return ValueError(f"{path} cannot be read ({told}). {advice}")


def _notes(path: Path, dialect: Dialect, separator: str | None, table: pa.Table) -> tuple[str, ...]:
    notes = []
    if separator is None and dialect.separator != ",":
        notes.append(
            f"{path.name} is read with the separator {dialect.name}, told from its header; "
            "--separator sets another one."
        )
    inside = lines_if_quoted(path) - dialect.skipped - 1 - len(table)
    if inside > 0:
        notes.append(
            f"{inside:,} lines of {path.name} are the continuation of a quoted text that begins on "
            "an earlier line. If no text has line breaks, a quote at the beginning of a value has "
            "no counterpart, and rows are lost."
        )
    return tuple(notes)
