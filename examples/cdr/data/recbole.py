"""RecBole's atomic files: a folder a domain, with NAME.inter and perhaps NAME.item in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from cdr.data import domain_names, likes, tables
from cdr.data.accounts import RowsRead
from cdr.data.catalogue import notes_on_catalogue
from cdr.data.cells import listed, naming, shown
from cdr.data.dataset import Dataset, Pair, split_domains
from cdr.data.dialect import Dialect
from cdr.data.limits import LIMITS, Limits
from cdr.data.protocol import LAST_ONE, Protocol
from cdr.data.reading import read_text
from cdr.data.schema import CrossDomainData
from cdr.data.split import build
from cdr.data.time_columns import times

_CATEGORY = ("category", "categories", "class")


class Files(NamedTuple):
    """The files of a domain."""

    interactions: Path
    items: Path | None


def load(
    root: Path | str,
    source: str | Sequence[str],
    target: str,
    *,
    source_cut: str = "time",
    protocol: Protocol = LAST_ONE,
    like_threshold: float | None = None,
    limits: Limits = LIMITS,
) -> CrossDomainData:
    """Two domains, or several and one, from atomic files.

    The interactions of a domain are tab-separated, with a header that names columns and types:
    user_id:token, item_id:token, rating:float and timestamp:float (in one unit for all domains, or
    ISO 8601; empty where unknown), in any order; further columns are ignored.
    Items may have a file NAME.item beside them with item_id:token and category:token,
    categories:token_seq or class:token_seq; of a sequence the first token counts. Without one, a
    single domain has one category, "others", and several domains are each other's categories.

    Args:
        root: The folder that holds NAME/NAME.inter, RecBole's layout, or NAME.inter.
        source: NAME of the domain to transfer from, or several (a sequence, or joined with "+").
            The path of a file, relative to `root`, is taken as well: "books/train.inter".
        target: NAME of the domain to recommend in, likewise.
        source_cut: See :func:`cdr.data.split.build`.
        protocol: Likewise.
        like_threshold: A rating above it is positive; by default 3, for a scale from 1 to 5.
        limits: Of the files.

    Returns:
        The scenario.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a file cannot be read, lacks a column or has an empty or wrong entry, a
            domain is named twice, times cannot be compared, all labels are of one class, or no
            user is in both domains.
    """
    sources = tables.named_once(source, target)
    files = find(root, (*sources, target))
    read = {name: _interactions(f.interactions, name, limits) for name, f in files.items()}
    table = pa.concat_tables(part for part, _ in read.values())
    parts = likes.parts_of(table, sources, target)
    named = " and ".join(f.interactions.name for f in files.values())
    where = f"{named} in {root}" if len(named) <= 80 else str(root)
    liked = likes.likes(table["rating"].to_numpy(), parts, like_threshold, where)
    table = tables.replace(table.drop_columns("rating"), "label", liked.label)
    catalogues = [_items(f.items, name, limits) for name, f in files.items() if f.items is not None]
    catalogue = pa.concat_tables(catalogues) if catalogues else None
    notes = [*liked.notes, *(note for _, note in read.values() if note)]
    if catalogue is not None:
        described = [name for name, f in files.items() if f.items is not None]
        notes += notes_on_catalogue(table, catalogue, described, "the .item files")
    with naming(where):
        return build(
            f"{'+'.join(map(_stem, sources))} → {_stem(target)}",
            tables.interactions(table, sources, catalogue),
            tables.interactions(table, (target,), catalogue),
            source_cut=source_cut,
            protocol=protocol,
            merge_lines=True,
            notes=notes,
            found=RowsRead(len(table)),
        )


def _stem(name: str) -> str:
    return Path(name).stem if name.endswith(".inter") else name


def find(root: Path | str, domains: Iterable[str]) -> dict[str, Files]:
    """The files of some domains, by domain.

    Args:
        root: See :func:`load`.
        domains: Names or paths, as for :func:`load`.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    found = {}
    for domain in domains:
        interactions = _find(Path(root), domain)
        items = interactions.with_suffix(".item")
        found[domain] = Files(interactions, items if items.is_file() else None)
    return found


def _find(root: Path, name: str) -> Path:
    if name.endswith(".inter"):
        places = [root / name]
    else:
        places = [root / name / f"{name}.inter", root / f"{name}.inter"]
    for path in places:
        if path.is_file():
            return path
    there = domains(root)
    similar = domain_names.close(name, there)
    raise FileNotFoundError(
        f"There is no file {' and no file '.join(map(str, places))}; check the folder and the "
        "names of the domains."
        + (f" Is {' or '.join(map(shown, similar))} meant?" if similar else "")
        + (f" There are {domain_names.listed(there)}." if there else "")
    )


def domains(root: Path) -> dict[str, None]:
    """The domains whose files are in a folder; their rows are not counted."""
    found = [*root.glob("*.inter"), *root.glob("*/*.inter")]
    known = sorted({path.stem for path in found if path.parent.name in (path.stem, root.name)})
    return dict.fromkeys(known)


def _interactions(path: Path, domain: str, limits: Limits) -> tuple[pa.Table, str]:
    """The interactions of a domain, and a note on its times or ""."""
    table, columns = _read(path, ("user_id", "item_id", "rating", "timestamp"), limits)
    rating = tables.numbers(table, columns["rating"], path, required=True)
    time = times(table, columns["timestamp"], path)
    interactions = {
        "user": tables.text(table, columns["user_id"], path),
        "item": tables.text(table, columns["item_id"], path),
        "rating": rating,
        "time": time.values,
        "domain": pa.repeat(domain, len(table)),
    }
    return pa.table(interactions), time.note


def _items(path: Path, domain: str, limits: Limits) -> pa.Table:
    table, columns = _read(path, ("item_id",), limits, one_of=_CATEGORY)
    name = next(columns[name] for name in _CATEGORY if name in columns)
    category = tables.text(table, name, path, required=False)
    if name.endswith(":token_seq"):
        category = pc.list_element(pc.split_pattern(pc.utf8_trim_whitespace(category), " "), 0)
    return pa.table(
        {
            "item": tables.text(table, columns["item_id"], path),
            "category": category,
            "domain": pa.repeat(domain, len(table)),
        }
    )


def _read(
    path: Path, required: Sequence[str], limits: Limits, one_of: Sequence[str] = ()
) -> tuple[pa.Table, dict[str, str]]:
    """The columns asked for as strings, and their heads, by name without the type."""
    columns: dict[str, str] = {}

    def choose(heads: Sequence[str]) -> dict[str, str]:
        columns.update(_columns(heads, (*required, *one_of), path))
        missing = [name for name in required if name not in columns]
        if missing:
            raise ValueError(
                f"{path} has no column {' and no column '.join(map(repr, missing))}; its header is "
                f"{listed(heads, 120)}. An atomic file is separated by tabs and names its columns "
                "like user_id:token."
            )
        if one_of and not any(name in columns for name in one_of):
            raise ValueError(
                f"{path} has no column category, categories or class; it has {listed(heads, 80)}. "
                "Rename the column that tells the category, or take the file away: without it "
                "every item has the category others."
            )
        return {head: head for head in columns.values()}

    table, _ = read_text(path, Dialect("\t", fixed=True), choose, limits)
    if not len(table):
        raise ValueError(f"{path} has a header but no rows; write it again.")
    return table, columns


def _columns(heads: Sequence[str], names: Sequence[str], path: Path) -> dict[str, str]:
    found = {}
    for name in names:
        alike = [head for head in heads if head.partition(":")[0].strip() == name]
        if len(alike) > 1:
            raise ValueError(
                f"{path} has the column {name!r} {len(alike)} times (as {listed(alike, 80)}); "
                "leave one of them."
            )
        if alike:
            found[name] = alike[0]
    return found


def _files(root: Path, pairs: Sequence[Pair]) -> dict[str, Path]:
    return {
        f"{domain}: {kind}": path
        for domain, files in find(root, split_domains(pairs)).items()
        for kind, path in files._asdict().items()
        if path is not None
    }


DATASET = Dataset(
    name="recbole",
    about="RecBole's atomic files",
    load=load,
    holds="NAME/NAME.inter of each domain",
    flags=frozenset({"source_cut", "like_threshold"}),
    files=_files,
    domains=lambda root, options: domains(root),
)
