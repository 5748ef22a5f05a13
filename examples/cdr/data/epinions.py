"""Epinions (J. Tang, Arizona State University): one platform whose categories are the domains."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from cdr.data import reading, tables
from cdr.data.accounts import OTHER_DOMAINS, RowsRead
from cdr.data.cells import naming
from cdr.data.dataset import Dataset, Published, counts, table_files
from cdr.data.likes import LIKED_ABOVE
from cdr.data.limits import LIMITS, Limits
from cdr.data.protocol import LAST_ONE, Protocol
from cdr.data.schema import CrossDomainData
from cdr.data.split import build


def load(
    root: Path | str,
    source: str | Sequence[str] = "3",
    target: str = "4",
    *,
    source_cut: str = "time",
    protocol: Protocol = LAST_ONE,
    limits: Limits = LIMITS,
) -> CrossDomainData:
    """One, several or all other domains of Epinions as the source for another.

    Times are 11 coarse bins, so that the strict cut drops source behaviours in the bin of the
    validation behaviour; ties within a domain are broken by the file's order. A single domain has
    one item category, "others"; the item category of a source made of several is the domain.

    Args:
        root: The folder that holds epinions/ with interactions.csv.gz (user, item, rating,
            timestamp, order, domain).
        source: Domain to transfer from ("1" to "27"), several (a sequence, or joined with "+"),
            or "others" for all but the target.
        target: Domain to recommend in.
        source_cut: See :func:`cdr.data.split.build`.
        protocol: Likewise.
        limits: Of the file.

    Returns:
        The scenario.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If it lacks a column or a domain is unknown.
    """
    path = Path(root) / "epinions" / "interactions.csv.gz"
    columns = ("user", "item", "rating", "timestamp", "order", "domain")
    table, notes = reading.read(path, columns, limits=limits)
    if source == "others":
        source = sorted(tables.rows_of_domains(table).keys() - {target}, key=_by_number)
    sources = tables.domains(table, source, target, path)
    num_rows = len(table)
    wanted = pc.is_in(table["domain"], value_set=pa.array([*sources, target]))
    table = table.filter(wanted)
    for column in ("user", "item"):
        table = tables.replace(table, column, tables.text(table, column, path))
    label = tables.numbers(table, "rating", path, required=True) > LIKED_ABOVE
    table = tables.replace(table, "label", label)
    table = tables.replace(table, "time", tables.numbers(table, "timestamp", path))
    table = tables.replace(table, "order", tables.places(table, "order", path))
    shown = "others" if len(sources) > 4 else "+".join(sources)
    with naming(path):
        return build(
            f"Epinions {shown} → {target}",
            tables.interactions(table, sources),
            tables.interactions(table, (target,)),
            source_cut=source_cut,
            protocol=protocol,
            merge_lines=True,
            notes=notes,
            found=RowsRead(num_rows, {OTHER_DOMAINS: num_rows - len(table)}),
        )


def _by_number(domain: str) -> tuple[int, str]:
    """As numbers are ordered, whatever a file has in their place."""
    return len(domain), domain


DATASET = Dataset(
    name="epinions",
    about="categories of Epinions",
    load=load,
    holds="epinions/",
    scenarios=(("3", "4"), ("3", "5"), ("others", "4")),
    is_in=lambda root: (root / "epinions").is_dir(),
    files=table_files("epinions"),
    prefix="Epinions",
    published={
        "Epinions 3 → 4": Published("3", "4", counts(8_323, 127_400, 92_733, 26_039, 54_924)),
        "Epinions 3 → 5": Published("3", "5", counts(7_243, 114_461, 75_263, 25_162, 31_897)),
    },
)
