"""Sentences on a table of items: rows that are not read, and items that are not in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from cdr.data.cells import shown


def notes_on_catalogue(
    log: pa.Table, catalogue: pa.Table, domains: Sequence[str], name: str
) -> Iterator[str]:
    """How many rows of a table of items repeat an item, and how many items have no row.

    Args:
        log: The behaviours, with the columns item and domain.
        catalogue: The items, with the columns item and, where domains do not share items, domain.
        domains: The domains that are read.
        name: Of the table.
    """
    of_domain = "domain" in catalogue.column_names
    wanted = pa.array(domains, pa.string())
    log = log.filter(pc.is_in(log["domain"], value_set=wanted))
    if of_domain:
        catalogue = catalogue.filter(pc.is_in(catalogue["domain"], value_set=wanted))
    ids = [_ids(table, of_domain) for table in (catalogue, log)]
    known, used = (pc.unique(each) for each in ids)
    if len(known) < len(catalogue):
        yield (
            f"{len(catalogue) - len(known):,} of {len(catalogue):,} rows of {name} are of an item "
            "that has a row above, which counts."
        )
    missing = pc.invert(pc.is_in(used, value_set=known))
    if pc.any(missing).as_py():
        yield (
            f"{pc.sum(missing).as_py():,} of {len(used):,} items have no row in {name}, such as "
            f"{shown(used.filter(missing)[0].as_py())}: their category is others."
        )


def _ids(table: pa.Table, of_domain: bool) -> pa.ChunkedArray:
    """The item of each row, as in messages, with the domain in front where it belongs to the id."""
    item = pc.cast(table["item"], pa.string())
    if not of_domain:
        return item
    return pc.binary_join_element_wise(pc.cast(table["domain"], pa.string()), item, "/")
