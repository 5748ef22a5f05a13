"""Any csv or parquet file with the columns user, item, rating, timestamp, domain."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cdr.data import domain_names, reading, tables
from cdr.data.accounts import OTHER_DOMAINS, RowsRead
from cdr.data.catalogue import notes_on_catalogue
from cdr.data.cells import naming
from cdr.data.dataset import Dataset, Pair
from cdr.data.decimals import with_points
from cdr.data.likes import NO_RATINGS, likes, parts_of
from cdr.data.limits import LIMITS, Limits
from cdr.data.protocol import LAST_ONE, Protocol
from cdr.data.schema import CrossDomainData
from cdr.data.spellings import refuse_shortened
from cdr.data.split import build
from cdr.data.time_columns import times

_COLUMNS = ("user", "item", "rating", "timestamp", "domain")
_HINTS = {
    "rating": NO_RATINGS,
    "domain": "It has to say of each row which domain it is of: two are needed, in one file.",
}


def load(
    path: Path | str,
    source: str | Sequence[str],
    target: str,
    *,
    items: Path | str | None = None,
    source_cut: str = "time",
    protocol: Protocol = LAST_ONE,
    like_threshold: float | None = None,
    separator: str | None = None,
    limits: Limits = LIMITS,
) -> CrossDomainData:
    """Two domains of one table of ratings.

    Args:
        path: A csv or parquet file, see :data:`cdr.data.reading.ENDINGS`, with the columns
            user, item, rating (a number), timestamp (a number in one unit for both domains, an ISO
            8601 date or time, or a parquet timestamp; empty where unknown) and domain, named in any
            case. Other columns are ignored.
        source: Domain to transfer from, or several (a sequence, or joined with "+"); the items
            of several carry the domain's name.
        target: Domain to recommend in.
        items: A csv or parquet file with the columns item and category, and domain where items
            of two domains share ids. Without it a single domain has one category, "others", and
            several domains are each other's categories.
        source_cut: See :func:`cdr.data.split.build`.
        protocol: Likewise.
        like_threshold: A rating above it is positive; by default 3, for a scale from 1 to 5.
        separator: Of `path`, see :func:`cdr.data.dialect.separator_of`; by default told from the
            header. That of `items` always is.
        limits: Of the files.

    Returns:
        The scenario.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file cannot be read or is empty, a column is missing, a user, item or
            domain is empty or broken, a rating is not a number, a timestamp not a time, a domain is
            unknown, all labels are of one class, times cannot be compared, or no user is in both
            domains.
    """
    table, notes = _log(path, separator, limits)
    if items is not None:
        catalogue, told = reading.read(
            items, ("item", "category"), optional=("domain",), limits=limits
        )
        notes += told
        for column in catalogue.column_names:
            filled = column != "category"
            column_text = tables.text(catalogue, column, items, required=filled)
            catalogue = tables.replace(catalogue, column, column_text)
    sources = tables.domains(table, source, target, path)
    rating = table["rating"].to_numpy()
    liked = likes(rating, parts_of(table, sources, target), like_threshold, str(path))
    table = tables.replace(table.drop_columns("rating"), "label", liked.label)
    notes += liked.notes
    notes += domain_names.left_out((*sources, target), tables.rows_of_domains(table))
    if items is not None:
        notes += notes_on_catalogue(table, catalogue, (*sources, target), Path(items).name)
    rows = [
        tables.interactions(table, names, None if items is None else catalogue)
        for names in (sources, (target,))
    ]
    found = RowsRead(len(table), {OTHER_DOMAINS: len(table) - sum(map(len, rows))})
    del table, rating  # the split is where most memory is needed
    with naming(path):
        return build(
            f"{'+'.join(sources)} → {target}",
            *rows,
            source_cut=source_cut,
            protocol=protocol,
            merge_lines=True,
            notes=notes,
            found=found,
        )


def _log(path: Path | str, separator: str | None, limits: Limits) -> tuple[pa.Table, list[str]]:
    """The columns user, item, domain, rating and time of a file, and notes on how it was read."""
    table, told = reading.read(path, _COLUMNS, separator=separator, hints=_HINTS, limits=limits)
    notes = [*told]
    # Each text is dropped as soon as it has been read: they are most of the memory.
    for column in ("user", "item", "domain"):
        ids = _domain(table, path) if column == "domain" else tables.text(table, column, path)
        ids = ids.dictionary_encode()
        refuse_shortened(ids, column, path)
        table = tables.replace(table, column, ids)
    for column in ("rating", "timestamp"):
        table, note = with_points(table, column, path)
        notes += [note] if note else []
    rating = tables.numbers(table, "rating", path, required=True)
    table = tables.replace(table, "rating", rating)
    read = times(table, "timestamp", path)
    notes += [read.note] if read.note else []
    return tables.replace(table.drop_columns("timestamp"), "time", read.values), notes


def _domain(table: pa.Table, path: Path | str) -> pa.ChunkedArray:
    """The column of domains: blanks around a name are none of it."""
    trimmed = pc.utf8_trim_whitespace(tables.text(table, "domain", path, required=False))
    return tables.text(tables.replace(table, "domain", trimmed), "domain", path)


def is_table(spec: str) -> bool:
    """Whether this is the name of a csv or parquet file."""
    return spec.endswith(reading.ENDINGS)


def dataset(spec: str) -> Dataset:
    """The data set that is in a file.

    Args:
        spec: Its path, relative to the root if one is given.
    """
    return Dataset(
        name=spec,
        about="a csv or parquet file",
        load=partial(_load_from, spec),
        flags=frozenset({"source_cut", "items", "like_threshold", "separator"}),
        files=partial(_files, spec),
        domains=partial(_domains, spec),
        titles=_titles,
    )


def _load_from(spec: str, root: Path | str | None, **options: Any) -> CrossDomainData:
    return load(Path(root or ".") / spec, **options)


def _files(spec: str, root: Path, pairs: Sequence[Pair]) -> dict[str, Path]:
    path = root / spec
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}; check the path to the data.")
    return {path.name: path}


def _domains(spec: str, root: Path, options: Mapping[str, Any]) -> Mapping[str, int]:
    path = root / spec
    given = {name: options[name] for name in ("separator", "limits") if name in options}
    table = reading.read(path, ("domain",), hints=_HINTS, **given).table
    domains = _domain(table, path).dictionary_encode()
    return tables.rows_of_domains(tables.replace(table, "domain", domains))


def _titles(
    root: Path,
    pair: Pair,
    items: Collection[str],
    catalogue: Path | str | None = None,
    *,
    limits: Limits = LIMITS,
) -> dict[str, str]:
    """The titles of some items, if the table of items has a column title."""
    if catalogue is None:
        return {}
    table = reading.read(catalogue, ("item",), optional=("domain", "title"), limits=limits).table
    if "title" not in table.column_names:
        return {}
    if "domain" in table.column_names:
        table = table.filter(pc.equal(tables.text(table, "domain", catalogue), pair[0]))
    ids = tables.text(table, "item", catalogue)
    wanted = pc.is_in(ids, value_set=pa.array(list(items), pa.string()))
    titles = tables.text(table, "title", catalogue, required=False).filter(wanted)
    pairs = zip(ids.filter(wanted).to_pylist(), titles.to_pylist(), strict=True)
    found: dict[str, str] = {}
    for item, title in pairs:
        if title:
            found.setdefault(item, title)
    return found
