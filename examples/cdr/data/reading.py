"""Csv and parquet files: some of their columns, and what has to be said of how they were read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from cdr.data.cells import listed, reason, shown
from cdr.data.dialect import Dialect, dialect_of, plain_name, separator_of
from cdr.data.limits import GIB, LIMITS, Limits
from cdr.data.survey import Survey, first_not_utf8, survey
from cdr.data.unpacking import opened

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
    limits: Limits = LIMITS,
) -> FileTable:
    """Columns of a csv or parquet file, found by their names in any case.

    Args:
        path: A file whose name ends as :data:`ENDINGS` say.
        columns: Columns the file must have.
        optional: Columns to read if the file has them.
        separator: See :func:`cdr.data.dialect.separator_of`; if left out, it is guessed.
        hints: What to tell, by column, where it is missing.
        limits: Of its size, its rows and the memory they take.

    Returns:
        The table of these columns, under the names asked for.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is of another kind, cannot be read, is beyond the limits, lacks a column,
            has one twice or has no rows; if a quote is a stray one.
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
    hints = hints or {}
    if is_text:
        table, notes = _text(path, columns, wanted, separator, hints, limits)
    else:
        try:
            table, notes = _parquet(path, columns, wanted, hints, limits), ()
        except (pa.ArrowException, UnicodeError, OSError, EOFError) as error:
            raise _unreadable(path, error) from error
    if not len(table):
        raise ValueError(f"{path} has a header but no rows; write it again.")
    return FileTable(table, notes)


def _text(
    path: Path,
    columns: Sequence[str],
    wanted: Sequence[str],
    separator: str | None,
    hints: Mapping[str, str],
    limits: Limits,
) -> tuple[pa.Table, tuple[str, ...]]:
    try:
        dialect = dialect_of(path, wanted, separator)
    except (pa.ArrowException, UnicodeError, OSError, EOFError) as error:
        raise _unreadable(path, error) from error

    def choose(names: Sequence[str]) -> dict[str, str]:
        found = _found(names, wanted, path)
        _refuse_missing(columns, found, names, path, dialect, hints)
        return found

    table, continued = read_text(path, dialect, choose, limits)
    return table, _notes(path, dialect, separator, continued)


def read_text(
    path: Path,
    dialect: Dialect,
    choose: Callable[[Sequence[str]], Mapping[str, str]],
    limits: Limits,
) -> tuple[pa.Table, int]:
    """Columns of a text file, as strings.

    Args:
        path: The file.
        dialect: How it is written.
        choose: Given the names in the header, says which columns to read: by new name the one in
            the header.
        limits: Of its size, its rows and the memory they take.

    Returns:
        The table of these columns; how many lines continue a quoted text.

    Raises:
        ValueError: It cannot be read, is beyond the limits, or a quote is a stray one.
    """
    seen = None
    try:
        seen = survey(path, dialect, limits)
        with pyarrow.csv.open_csv(_stream(path, dialect), **_settings(dialect, seen)) as reader:
            names = reader.schema.names
        found = choose(names)
        table = _columns(path, dialect, seen, list(found.values()), limits)
    except (pa.ArrowException, UnicodeError, OSError, EOFError) as error:
        raise _unreadable(path, error, dialect, seen, limits) from error
    # Empty lines are no rows, and a quoted text may go on over lines; nothing else is left out.
    continued = seen.lines - dialect.skipped - 1 - len(table)
    if continued < 0 or (continued and not dialect.quoted):
        raise ValueError(
            f"{path} has {seen.lines:,} lines and {len(table):,} rows: it has changed while it was "
            "read. Wait until it is complete."
        )
    return table.select(list(found.values())).rename_columns(list(found)), continued


def _columns(
    path: Path, dialect: Dialect, seen: Survey, names: Sequence[str], limits: Limits
) -> pa.Table:
    """Some columns of a text file, as strings."""
    settings = _settings(dialect, seen)
    settings["convert_options"] = pyarrow.csv.ConvertOptions(
        include_columns=names, column_types=dict.fromkeys(names, pa.string())
    )
    if dialect.separator == "::":  # these files are held as a whole
        limits.refuse_memory(path, seen.size)
    if seen.size <= limits.max_memory_gib * GIB:
        return pyarrow.csv.read_csv(_stream(path, dialect), **settings)
    # The columns that are asked for may still be small.
    parts, size = [], 0
    with pyarrow.csv.open_csv(_stream(path, dialect), **settings) as reader:
        for batch in reader:
            size += batch.nbytes
            limits.refuse_memory(path, size)
            parts.append(batch)
        return pa.Table.from_batches(parts, reader.schema)


def _parquet(
    path: Path,
    columns: Sequence[str],
    wanted: Sequence[str],
    hints: Mapping[str, str],
    limits: Limits,
) -> pa.Table:
    with path.open("rb") as raw:
        file = pyarrow.parquet.ParquetFile(raw)
        names = file.schema_arrow.names
        found = _found(names, wanted, path)
        _refuse_missing(columns, found, names, path, None, hints)
        for name in found.values():
            _refuse_type(file.schema_arrow.field(name), path)
        limits.refuse_size(path, path.stat().st_size, _unpacked_size(file))
        # A text that is kept once may stand in all rows: it is counted before it is repeated.
        texts = [n for n in found.values() if _is_text(file.schema_arrow.field(n).type)]
        raw.seek(0)
        file = pyarrow.parquet.ParquetFile(raw, read_dictionary=texts)
        parts, size = [], 0
        for batch in file.iter_batches(columns=list(found.values())):
            batch.validate(full=True)  # the file may claim that any bytes are UTF-8
            size += sum(_size(column) for column in batch.columns)
            limits.refuse_memory(path, size)
            parts.append(pa.table([_plain(c) for c in batch.columns], batch.schema.names))
    if not parts:
        raise ValueError(f"{path} has columns but no rows; write it again.")
    table = pa.concat_tables(parts, promote_options="default")
    return table.select(list(found.values())).rename_columns(list(found))


def _plain(column: pa.Array) -> pa.Array:
    """The column as one of the few types that are read."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if _is_text(column.type):
        return column.cast(pa.string())
    return column.cast(pa.float32()) if pa.types.is_float16(column.type) else column


def _refuse_type(field: pa.Field, path: Path) -> None:
    kind = field.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    known = (
        *(pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_boolean),
        *(pa.types.is_timestamp, pa.types.is_date, pa.types.is_null, _is_text),
    )
    if not any(is_kind(kind) for is_kind in known):
        raise ValueError(
            f"{path}: column {shown(field.name)} is of type {reason(TypeError(str(kind)))}, and is "
            "no column of texts, numbers, dates or timestamps. Write it as one of these."
        )


def _is_text(kind: pa.DataType) -> bool:
    return any(
        is_kind(kind)
        for is_kind in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    )


def _unpacked_size(file: pyarrow.parquet.ParquetFile) -> int:
    """The bytes that its columns say to have unpacked."""
    about = file.metadata
    # Of whole groups: pyarrow ends the interpreter where what is said of one column is damaged.
    return sum(about.row_group(place).total_byte_size for place in range(about.num_row_groups))


def _size(column: pa.Array) -> int:
    """The bytes of a column, a text counted as often as it stands there."""
    size: int = column.nbytes
    if pa.types.is_dictionary(column.type) and _is_text(column.type.value_type):
        lengths = pc.binary_length(column.dictionary.cast(pa.large_string()))
        size += pc.sum(pc.take(lengths, column.indices)).as_py() or 0
    return size


def _stream(path: Path, dialect: Dialect) -> pa.NativeFile:
    stream = opened(path)
    if dialect.separator != "::":
        return stream
    with stream:
        content: bytes = stream.read()
    if _ONE_CHARACTER in content:
        raise ValueError(f"{path} has the control character 0x1f in it, so that it cannot be read.")
    return pa.BufferReader(content.replace(b"::", _ONE_CHARACTER))


def _settings(dialect: Dialect, seen: Survey) -> dict[str, Any]:
    return {
        # The parser wants a row to lie in two blocks at most.
        "read_options": pyarrow.csv.ReadOptions(
            skip_rows=dialect.skipped, block_size=max(1 << 20, 2 * seen.longest)
        ),
        "parse_options": pyarrow.csv.ParseOptions(
            delimiter=_ONE_CHARACTER.decode() if dialect.separator == "::" else dialect.separator,
            quote_char='"' if dialect.quoted else False,
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
                f"{listed(alike, 80)}); leave one of them."
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
    read_with = f" (read with the separator {dialect.name})" if dialect else ""
    # Where most columns are missing, the cause is another one.
    hints = hints if len(missing) == 1 or 2 * len(missing) <= len(columns) else {}
    told = " ".join(hints[name] for name in missing if name in hints)
    raise ValueError(
        f"{path} has no column {' and no column '.join(map(repr, missing))}; its first line has "
        f"{listed(names, 60 if told else 120)}{read_with}. Rename or add it"
        + ("; --separator sets another separator." if len(names) == 1 and dialect else ".")
        + (f" {told}" if told else "")
    )


def _unreadable(
    path: Path,
    error: Exception,
    dialect: Dialect | None = None,
    seen: Survey | None = None,
    limits: Limits = LIMITS,
) -> ValueError:
    told = reason(error)
    advice = "It is empty, cut off or not what its name says: write it again."
    broken = None if seen is None else first_not_utf8(path, limits)
    if broken is not None:
        told = f"line {broken[0]:,} has {broken[1]}"
        advice = 'It is not written in UTF-8: save it as UTF-8 (in Excel: "CSV UTF-8").'
    elif "Expected" in str(error) and dialect is not None and seen is not None:
        told = _ragged(path, dialect, seen) or told
        advice = (
            f"Its lines have different numbers of columns, read with the separator {dialect.name}"
            + (
                ": a value must not hold it."
                if dialect.fixed
                else ": quote texts that hold the separator, or set another one with --separator."
            )
        )
    return ValueError(f"{path} cannot be read ({told}). {advice}")


def _ragged(path: Path, dialect: Dialect, seen: Survey) -> str:
    """The first row that has another number of columns than the header."""
    told = []

    def look(row: pyarrow.csv.InvalidRow) -> str:
        # The header is row 1 to the parser.
        where = f"row {row.number - 1:,} " if row.number is not None else "a row "
        told.append(
            f"{where}has {row.actual_columns:,} columns, the header {row.expected_columns:,}: "
            f"{shown(row.text)}"
        )
        return "error"

    settings = _settings(dialect, seen)
    settings["read_options"].use_threads = False  # else rows are not numbered
    settings["parse_options"].invalid_row_handler = look
    with suppress(pa.ArrowException):
        pyarrow.csv.read_csv(_stream(path, dialect), **settings)
    return told[0] if told else ""


def _notes(path: Path, dialect: Dialect, separator: str | None, continued: int) -> tuple[str, ...]:
    notes = []
    if separator is None and dialect.separator != ",":
        notes.append(
            f"{path.name} is read with the separator {dialect.name}, told from its header; "
            "--separator sets another one."
        )
    if continued:
        notes.append(
            f"{continued:,} lines of {path.name} are the continuation of a quoted text that begins "
            "on an earlier line. If no text has line breaks, a quote at the beginning of a value "
            "has no counterpart, and rows are lost."
        )
    return tuple(notes)
