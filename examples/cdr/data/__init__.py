"""Scenarios of two domains: `load` gives each of them the same shape, ready for a model.

One file per data set; `schema` says what a scenario is, `split` how it is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cdr.data import amazon5, epinions, generator, tables
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


def load(
    spec: str,
    root: Path | str | None = None,
    source: str | Sequence[str] | None = None,
    target: str | None = None,
    **options: Any,
) -> CrossDomainData:
    """A scenario by name.

    Args:
        spec: "g1" or "g2" (made up), "amazon5", "epinions", or the path of a csv or parquet file,
            relative to `root` if that is given.
        root: The folder that holds the data sets' folders.
        source: Source domain or domains; the data set's first scenario if left out.
        target: Target domain, likewise.
        **options: Further arguments of :func:`cdr.data.generator.generate` (num_users, seed),
            :func:`cdr.data.amazon5.load` and :func:`cdr.data.epinions.load` (source_cut), or
            :func:`cdr.data.tables.load` (items, source_cut).

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
    if spec in ("g1", "g2"):
        if given or root is not None:
            raise ValueError(f'"{spec}" is made up: leave out root, source and target.')
        return generator.generate(spec.upper(), **options)
    if spec in ("amazon5", "epinions"):
        if root is None:
            raise ValueError(f"root is None; give the folder that holds {spec}/.")
        load_from = amazon5.load if spec == "amazon5" else epinions.load
        return load_from(root, **given, **options)
    if not spec.endswith((".csv", ".csv.gz", ".parquet")):
        raise ValueError(
            f'spec {spec!r} is unknown; give "g1", "g2", "amazon5", "epinions" or the path of a '
            ".csv, .csv.gz or .parquet file."
        )
    if len(given) < 2:
        raise ValueError(f"source={source!r}, target={target!r}: name two domains of {spec}.")
    return tables.load(Path(root or ".") / spec, **given, **options)
