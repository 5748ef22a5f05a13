"""Any csv or parquet file with the columns user, item, rating, timestamp, domain."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa

from cdr.data import tables
from cdr.data.catalogue import notes_on_catalogue
from cdr.data.dataset import Dataset, Pair
from cdr.data.schema import CrossDomainData
from cdr.data.split import build
from cdr.data.time_columns import times

_COLUMNS = ("user", "item", "rating", "timestamp", "domain")


def load(
    path: Path | str,
    source: str | Sequence[str],
    target: str,
    *,
    items: Path | str | None = None,
    source_cut: str = "time",
) -> CrossDomainData:
    """Two domains of one table of ratings.

    Args:
        path: A csv (.csv, .csv.gz) or parquet file with the columns user, item, rating (a
            number; positive above 3), timestamp (a number in one unit for both domains, an ISO
            8601 date or time, or a parquet timestamp; empty where unknown) and domain. Other
            columns are ignored.
        source: Domain to transfer from, or several (a sequence, or joined with "+"); the items
            of several carry the domain's name.
        target: Domain to recommend in.
        items: A csv or parquet file with the columns item and category, and domain where items
            of two domains share ids. Without it a single domain has one category, "others", and
            several domains are each other's categories.
        source_cut: See :func:`cdr.data.split.build`.

    Returns:
        The scenario.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file cannot be read or is empty, a column is missing, a user, item or
            domain is empty, a rating is not a number, a timestamp not a time, a domain is
            unknown, times cannot be compared, or no user is in both domains.
    """
    table, note = _log(path)
    if items is not None:
        catalogue = tables.read(items, ("item", "category"), optional=("domain",))
        for column in catalogue.column_names:
            filled = column != "category"
            column_text = tables.text(catalogue, column, items, required=filled)
            catalogue = tables.replace(catalogue, column, column_text)
    sources = tables.domains(table, source, target, path)
    notes = [note] if note else []
    if items is not None:
        notes += notes_on_catalogue(table, catalogue, (*sources, target), Path(items).name)
    rows = [
        tables.interactions(table, names, None if items is None else catalogue)
        for names in (sources, (target,))
    ]
    del table  # the split is where most memory is needed
    return build(
        f"{'+'.join(sources)} → {target}",
        *rows,
        source_cut=source_cut,
        merge_lines=True,
        notes=notes,
    )


def _log(path: Path | str) -> tuple[pa.Table, str]:
    """The columns user, item, domain, label and time of a file, and a note on its times or ""."""
    table = tables.read(path, _COLUMNS)
    # Each text is dropped as soon as it has been read: they are most of the memory.
    for column in ("user", "item", "domain"):
        ids = tables.text(table, column, path)
        table = tables.replace(table, column, ids.dictionary_encode())
    rating = tables.numbers(table, "rating", path, required=True)
    table = tables.replace(table.drop_columns("rating"), "label", rating > tables.POSITIVE_ABOVE)
    read = times(table, "timestamp", path)
    return tables.replace(table.drop_columns("timestamp"), "time", read.values), read.note


def is_table(spec: str) -> bool:
    """Whether this is the name of a csv or parquet file."""
    return spec.endswith((".csv", ".csv.gz", ".parquet"))


def dataset(spec: str) -> Dataset:
    """The data set that is in a file.

    Args:
        spec: Its path, relative to the root if one is given.
    """
    return Dataset(
        name=spec,
        about="a csv or parquet file",
        load=partial(_load_from, spec),
        flags=frozenset({"source_cut", "items"}),
        files=partial(_files, spec),
    )


def _load_from(spec: str, root: Path | str | None, **options: str) -> CrossDomainData:
    return load(Path(root or ".") / spec, **options)


def _files(spec: str, root: Path, pairs: Sequence[Pair]) -> dict[str, Path]:
    path = root / spec
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}; check the path to the data.")
    return {path.name: path}
