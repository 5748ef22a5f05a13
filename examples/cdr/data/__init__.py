"""Scenarios of two domains: `load` gives each of them the same shape, ready for a model.

One file per data set; `schema` says what a scenario is, `split` how it is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cdr.data import amazon, amazon5, epinions, generator, recbole, tables
from cdr.data.generator import generate
from cdr.data.schema import Behaviors, CrossDomainData, Histories, Interactions, Items
from cdr.data.split import audit, build

__all__ = [
    "Behaviors",
    "CrossDomainData",
    "Histories",
    "Interactions",
    "Items",
    "audit",
    "build",
    "generate",
    "load",
]

GENERATED = tuple(kind.lower() for kind in generator.KINDS)
"""The data sets that are made up."""

HOLDS = {
    "amazon": "reviews_X_5.json.gz and meta_X.json.gz of each domain X",
    "amazon5": "amazon5/",
    "epinions": "epinions/",
    "recbole": "NAME/NAME.inter of each domain",
}
"""The data sets that are read from a folder, and what must be in it."""

_SETS = {
    "amazon": amazon.load,
    "amazon5": amazon5.load,
    "epinions": epinions.load,
    "recbole": recbole.load,
}


def load(
    spec: str,
    root: Path | str | None = None,
    source: str | Sequence[str] | None = None,
    target: str | None = None,
    **options: Any,
) -> CrossDomainData:
    """A scenario by name.

    Args:
        spec: "g1" or "g2" (made up), "amazon" (the original files), "amazon5", "epinions",
            "recbole" (atomic files), or the path of a csv or parquet file, relative to `root` if
            that is given.
        root: The folder that holds the data sets' folders or files.
        source: Source domain or domains; the data set's first scenario if left out.
        target: Target domain, likewise.
        **options: Further arguments of :func:`cdr.data.generator.generate` (num_users, seed) or
            of the data set's `load`: source_cut for all; cache for :func:`cdr.data.amazon.load`;
            items for :func:`cdr.data.tables.load`.

    Returns:
        The scenario.

    Raises:
        ValueError: If `spec` is unknown, an argument it needs is left out, or the data are bad.
        FileNotFoundError: If a file is missing.

    Example:
        >>> load("g1", num_users=20).name
        'G1'
    """
    named: dict[str, Any] = {"source": source, "target": target}
    given = {key: value for key, value in named.items() if value is not None}
    if spec in GENERATED:
        if given or root is not None:
            raise ValueError(f'"{spec}" is made up: leave out root, source and target.')
        return generator.generate(spec.upper(), **options)
    if spec in _SETS:
        if root is None:
            raise ValueError(f"root is None; give the folder that holds {HOLDS[spec]}.")
        if spec == "recbole" and len(given) < 2:
            raise ValueError(f"source={source!r}, target={target!r}: name two domains of recbole.")
        return _SETS[spec](root, **given, **options)
    if not spec.endswith((".csv", ".csv.gz", ".parquet")):
        raise ValueError(
            f"spec {spec!r} is unknown; give {', '.join(map(repr, (*GENERATED, *_SETS)))} or the "
            "path of a .csv, .csv.gz or .parquet file."
        )
    if len(given) < 2:
        raise ValueError(f"source={source!r}, target={target!r}: name two domains of {spec}.")
    return tables.load(Path(root or ".") / spec, **given, **options)
