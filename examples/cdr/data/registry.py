"""All data sets, by name. To add one, import its module and add its object to the list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from cdr.data import amazon, amazon5, domain_names, epinions, generator, own_file, reading, recbole
from cdr.data.dataset import Dataset, Pair, split_domains
from cdr.data.harm import Foreign, Harm, harmed
from cdr.data.schema import CrossDomainData

DATASETS: dict[str, Dataset] = {
    dataset.name: dataset
    for dataset in (
        *generator.DATASETS,
        amazon5.DATASET,
        epinions.DATASET,
        amazon.DATASET,
        recbole.DATASET,
    )
}
"""By the value of ``--data``; a table of one's own has none (:func:`find_dataset`)."""


def find_dataset(spec: str) -> Dataset:
    """The data set of a name, or that of a table of one's own.

    Args:
        spec: A name of :data:`DATASETS`, or the path of a csv or parquet file.

    Raises:
        ValueError: It is neither.
    """
    if spec in DATASETS:
        return DATASETS[spec]
    if own_file.is_table(spec):
        return own_file.dataset(spec)
    raise ValueError(
        f"spec {spec!r} is unknown; give {', '.join(map(repr, DATASETS))} or the path of a file "
        f"that ends in {', '.join(reading.ENDINGS)}."
    )


def load(
    spec: str,
    root: Path | str | None = None,
    source: str | Sequence[str] | None = None,
    target: str | None = None,
    harm: Harm | None = None,
    **options: Any,
) -> CrossDomainData:
    """Load a scenario by name.

    Args:
        spec: "g1" or "g2" (generated), "amazon" (the original files), "amazon5", "epinions",
            "recbole" (atomic files), or the path of a csv or parquet file, relative to `root` if
            that is given.
        root: The folder that holds the data sets' folders or files.
        source: Source domain or domains; the data set's first scenario if left out.
        target: Target domain, likewise.
        harm: A known harm to the source behaviours, which is done to what is loaded.
        **options: Further arguments of :func:`cdr.data.generator.generate` (num_users, seed) or
            of the data set's `load`: protocol for all; source_cut for all
            but generated ones; cache for :func:`cdr.data.amazon.load`;
            items and separator for :func:`cdr.data.own_file.load`; like_threshold for it and
            for :func:`cdr.data.recbole.load`.

    Returns:
        The scenario.

    Raises:
        ValueError: `spec` is unknown, an argument that it needs is left out, or the data are bad.
        FileNotFoundError: A file is missing.

    Example:
        >>> load("g1", num_users=20).name
        'G1'
    """
    named: dict[str, Any] = {"source": source, "target": target}
    given = {key: value for key, value in named.items() if value is not None}
    dataset = find_dataset(spec)
    if dataset.generated:
        if given or root is not None:
            raise ValueError(f'"{spec}" is generated: leave out root, source and target.')
        data = dataset.load(**options)
        return data if harm is None else harmed(data, harm)
    if root is None and dataset.holds:
        raise ValueError(f"root is None; give the folder that holds {dataset.holds}.")
    if not dataset.scenarios and len(given) < 2:
        there = dataset.domains(Path(root or "."), options) if dataset.domains else {}
        raise ValueError(f"source={source!r}, target={target!r}: {_name_two(spec, there)}")
    data = dataset.load(root, **given, **options)
    if harm is None:
        return data
    pair = foreign_pair(dataset, harm, {"root": root, **given, **options})
    return harmed(data, harm, None if pair is None else _foreign(dataset, pair, root, options))


def foreign_pair(dataset: Dataset, harm: Harm, options: Mapping[str, Any]) -> Pair | None:
    """Where the harm "foreign-domain" takes behaviours from: a scenario with the same target.

    The domain is drawn at random, by the seed of the harm, from those that are in the folder or
    the file and that the scenario does not have.

    Args:
        dataset: The data set.
        harm: The harm.
        options: Those of :func:`load`.

    Returns:
        The source and the target; None for another harm, or if there is no further domain.
    """
    if harm.kind != "foreign-domain" or dataset.generated:
        return None
    root = Path(options.get("root") or ".")
    source, target = dataset.scenarios[0] if dataset.scenarios else ("", "")
    source, target = options.get("source", source), options.get("target", target)
    source = source if isinstance(source, str) else "+".join(source)
    used = {dataset.full_name(name) for name in split_domains([(source, target)])}
    if dataset.domains is not None:
        rest = {"root", "source", "target"}
        known = list(dataset.domains(root, {k: v for k, v in options.items() if k not in rest}))
    else:
        known = split_domains(complete(dataset, root, dataset.scenarios))
    left = sorted({dataset.full_name(name) for name in known} - used - {"others"})
    # The source "others" is all domains but the target.
    if "others" in used or not left:
        return None
    return str(np.random.default_rng(harm.seed).choice(left)), target


def _foreign(
    dataset: Dataset, pair: Pair, root: Path | str | None, options: Mapping[str, Any]
) -> Foreign:
    domain, target = pair
    try:
        return Foreign(domain, dataset.load(root, source=domain, target=target, **options))
    except ValueError as error:
        raise ValueError(
            f"--harm foreign-domain: the domain drawn for it, {domain}, gives no behaviours: "
            f"{error} Another --harm-seed draws another domain."
        ) from error


def _name_two(spec: str, there: Mapping[str, int | None]) -> str:
    if len(there) == 1:
        return (
            f"{spec} has the domain {domain_names.listed(there)} alone, and two are needed, a "
            "source and a target: take a file of both, with their names in the column domain."
        )
    listed = f"; there are {domain_names.listed(there)}" if there else ""
    return f"name two domains of {spec}, with --source and --target{listed}."


def complete(dataset: Dataset, root: Path, pairs: Sequence[Pair]) -> list[Pair]:
    """Those scenarios of a data set of which all files are there."""
    found = []
    for pair in pairs:
        with suppress(FileNotFoundError):
            dataset.files(root, [pair])
            found.append(pair)
    return found


def require(dataset: Dataset, root: Path, scenarios: Mapping[str, Pair], flag: str) -> None:
    """Check that all files of some scenarios are there.

    Args:
        dataset: Their data set.
        root: The folder that holds it.
        scenarios: Source and target, by the value of the option that names them.
        flag: That option.

    Raises:
        FileNotFoundError: Naming all files that are missing, and the scenarios that are complete.
    """
    try:
        dataset.files(root, list(scenarios.values()))
    except FileNotFoundError as error:
        whole = complete(dataset, root, list(scenarios.values()))
        if not whole:
            raise
        names = " ".join(name for name, pair in scenarios.items() if pair in whole)
        raise FileNotFoundError(
            f"{error}\nFor some scenarios all are there: {flag} {names}"
        ) from None
