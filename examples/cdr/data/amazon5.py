"""Amazon 2014, 5-core: Toys_and_Games, Beauty, Baby, Office_Products (J. McAuley's reviews)."""

from __future__ import annotations

import html
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from cdr.data import reading, tables
from cdr.data.accounts import OTHER_DOMAINS, RowsRead
from cdr.data.amazon_domains import TABLE_NAMES
from cdr.data.cells import naming, shown
from cdr.data.dataset import Dataset, Pair, Published, counts, table_files
from cdr.data.limits import LIMITS, Limits
from cdr.data.literals import is_text, literal
from cdr.data.protocol import LAST_ONE, Protocol
from cdr.data.schema import OTHERS, CrossDomainData
from cdr.data.split import build


def load(
    root: Path | str,
    source: str | Sequence[str] = "Beauty",
    target: str = "Toys_and_Games",
    *,
    source_cut: str = "time",
    protocol: Protocol = LAST_ONE,
    limits: Limits = LIMITS,
) -> CrossDomainData:
    """One or several domains of Amazon as the source for another.

    Rows without a label are left out and counted in a note. Categories of Beauty bear the name at
    the third level of their paths ("others" where there is none), those of Toys_and_Games the
    number in the file; Baby and Office_Products have none ("others"). With several sources, items
    and categories have their domain's name in front ("Beauty/Nails").

    Args:
        root: The folder that holds amazon5/ with interactions.csv.gz (user, item, label,
            timestamp, order, domain) and items.csv.gz (item, category, domain, category_path).
        source: Domain to transfer from, or several (a sequence, or joined with "+").
        target: Domain to recommend in.
        source_cut: See :func:`cdr.data.split.build`.
        protocol: Likewise.
        limits: Of the files.

    Returns:
        The scenario; its notes say which times and labels were missing and what was done.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file lacks a column or a domain is unknown.
    """
    path = Path(root) / "amazon5" / "interactions.csv.gz"
    columns = ("user", "item", "label", "timestamp", "order", "domain")
    table, notes = reading.read(path, columns, limits=limits)
    sources = tables.domains(table, source, target, path)
    _refuse_labels(table, path)
    num_read = len(table)
    wanted = pc.is_in(table["domain"], value_set=pa.array([*sources, target]))
    table = table.filter(wanted)
    for column in ("user", "item"):
        table = tables.replace(table, column, tables.text(table, column, path))
    unlabelled = pc.equal(table["label"], "")
    dropped = table["domain"].filter(unlabelled)
    num_rows, table = len(table), table.filter(pc.invert(unlabelled))
    left_out = {OTHER_DOMAINS: num_read - num_rows, "without a label": len(dropped)}
    table = tables.replace(table, "label", pc.equal(table["label"], "1"))
    table = tables.replace(table, "time", tables.numbers(table, "timestamp", path))
    table = tables.replace(table, "order", tables.places(table, "order", path))
    of_items = ("item", "category", "domain", "category_path")
    described = reading.read(path.with_name("items.csv.gz"), of_items, limits=limits)
    notes = (*_note_on_labels(dropped, num_rows), *notes, *described.notes)
    catalogue = _named(described.table, limits)
    with naming(path):
        return build(
            f"{'+'.join(sources)} → {target}",
            tables.interactions(table, sources, catalogue),
            tables.interactions(table, (target,), catalogue),
            source_cut=source_cut,
            protocol=protocol,
            merge_lines=True,
            notes=notes,
            found=RowsRead(num_read, left_out),
        )


def _refuse_labels(table: pa.Table, path: Path) -> None:
    """Refuse labels that are none, which would count as negative.

    Raises:
        ValueError: Naming the first one.
    """
    known = pc.is_in(table["label"], value_set=pa.array(["0", "1", ""]))
    row = pc.index(known, False).as_py()
    if row >= 0:
        raise ValueError(
            f"{path}: 'label' is {shown(table['label'][row].as_py())} in row {row + 1} (the first "
            "below the header is row 1), not 0, 1 or empty. Correct or drop such rows."
        )


def _note_on_labels(dropped: pa.ChunkedArray, num_rows: int) -> Iterator[str]:
    """How many rows of each domain had no label."""
    if len(dropped):
        counts = sorted(
            (row["values"], row["counts"]) for row in dropped.value_counts().to_pylist()
        )
        told = ", ".join(f"{count:,} of {domain}" for domain, count in counts)
        yield f"{len(dropped):,} of {num_rows:,} rows have no label and are left out: {told}."


def _named(catalogue: pa.Table, limits: Limits) -> pa.Table:
    """Puts the names of the categories, where paths tell them, in the place of their numbers."""
    pairs = catalogue.group_by(["domain", "category", "category_path"]).aggregate(
        [([], "count_all")]
    )
    names: dict[tuple[str, str], str] = {}
    # Most frequent last, to win: a few paths are wrong, and some categories join two places.
    for row in pairs.sort_by(
        [("count_all", "ascending"), ("category_path", "ascending")]
    ).to_pylist():
        name = _third_level(row["category_path"], limits)
        if name:
            names[row["domain"], row["category"]] = name
        elif row["category_path"]:
            names.setdefault((row["domain"], row["category"]), OTHERS)
    keys = pc.binary_join_element_wise(catalogue["domain"], catalogue["category"], "/")
    numbered = pa.array(["/".join(key) for key in names], pa.string())
    place = pc.index_in(keys, value_set=numbered)
    named = pc.take(pa.array(list(names.values()), pa.string()), place)
    return tables.replace(catalogue, "category", pc.coalesce(named, catalogue["category"]))


def _third_level(path: str, limits: Limits) -> str:
    """The third level of a path written as a python list of lists; "" where there is none."""
    levels = literal(path, limits.max_nesting)
    try:
        name = levels[0][2]  # type: ignore[index]
    except (LookupError, TypeError):
        return ""
    return name if is_text(name) else ""


def titles(
    root: Path, pair: Pair, items: Collection[str], *, limits: Limits = LIMITS
) -> dict[str, str]:
    """The titles of some items by id, if the table of items has any.

    Args:
        root: See :func:`load`.
        pair: Source and target; the table holds the items of all domains.
        items: Their ids.
        limits: Of the file.
    """
    path = root / "amazon5" / "items.csv.gz"
    table = reading.read(path, ("item",), optional=("title",), limits=limits).table
    if "title" not in table.column_names:
        return {}
    table = table.filter(pc.is_in(table["item"], value_set=pa.array(list(items), pa.string())))
    pairs = zip(table["item"].to_pylist(), table["title"].to_pylist(), strict=True)
    # Titles come from web pages.
    return {item: html.unescape(title) for item, title in pairs if title}


_TOYS = "Toys_and_Games"
PUBLISHED = {
    f"{source} → {target}": Published(source, target, counts(*statistics))
    for (source, target), statistics in {
        ("Beauty", _TOYS): (1_654, 28_890, 28_197, 6_158, 7_199),
        (_TOYS, "Beauty"): (1_654, 28_197, 28_890, 7_199, 6_158),
        ("Baby", _TOYS): (2_976, 29_286, 38_875, 5_424, 8_625),
        ("Office_Products", _TOYS): (1_609, 23_528, 29_326, 2_152, 6_036),
        ("Baby+Office_Products+Beauty", _TOYS): (4_617, 81_704, 59_485, 13_734, 10_071),
    }.items()
}
"""Statistics of this incomplete copy of the data."""

DATASET = Dataset(
    name="amazon5",
    about="four domains of Amazon",
    load=load,
    holds="amazon5/",
    scenarios=tuple((one.source, one.target) for one in PUBLISHED.values()),
    is_in=lambda root: (root / "amazon5").is_dir(),
    files=table_files("amazon5"),
    short_names=TABLE_NAMES,
    published=PUBLISHED,
    titles=titles,
)
