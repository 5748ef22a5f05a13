"""``run_biao.py data``: load a data set, count it, audit it, compare it with what is published."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from cdr.data import (
    DATASETS,
    LAST_ONE,
    LIMITS,
    Check,
    CrossDomainData,
    Dataset,
    Harm,
    HarmKind,
    Hidden,
    Limits,
    Protocol,
    agrees,
    audit,
    check,
    find_dataset,
    load,
    require,
    source_reading,
)
from cdr.runs.arguments import optional

DESCRIPTION = """\
Print a data set's statistics, compare them with published ones, look for leaks.

Examples:

  run_biao.py data amazon --root DATA
  run_biao.py data amazon --root DATA --scenarios Books-Toys CDs-Kitchen
  run_biao.py data recbole --root DATA --source books --target toys
  run_biao.py data ratings.csv --source books --target toys
"""


HarmChoice = Literal["none", HarmKind]
"""The values of ``--harm``."""


@dataclass(frozen=True)
class DataCommand:
    """What to look at."""

    data: Annotated[
        str,
        tyro.conf.Positional,
        tyro.conf.arg(
            metavar="NAME", help=f"One of {', '.join(DATASETS)}, or a csv or parquet file."
        ),
    ]
    root: Annotated[Path | None, optional("PATH")] = None
    """Folder that holds the data; for a file, what its path is relative to."""
    source: Annotated[str | None, optional("NAME", "the data set's first scenario")] = None
    """Source domain; several joined with "+"."""
    target: Annotated[str | None, optional("NAME", "the data set's first scenario")] = None
    """Target domain."""
    scenarios: Annotated[
        tuple[str, ...] | None, optional("SOURCE-TARGET ...", "the paper's seven")
    ] = None
    """Of amazon: several scenarios, by the names in the paper or in the files."""
    items: Annotated[Path | None, optional("PATH")] = None
    """With a file of ratings: a csv or parquet file with the columns item, category."""
    like_threshold: Annotated[float | None, optional("RATING", "3, of 1 to 5")] = None
    """A higher rating is positive; with a file of ratings, or recbole."""
    separator: Annotated[str | None, optional("CHARACTER", "told from the header")] = None
    """Between the columns of a file of ratings: comma, semicolon, tab, '|', '::', …"""
    source_cut: Literal["time", "all"] = "time"
    """Keep source behaviours earlier than the user's validation behaviour, or all."""
    cache: Annotated[Path | None, optional("PATH", "ROOT/.cache-reweight")] = None
    """Where amazon keeps what it has read of its files."""
    protocol: Annotated[Protocol, tyro.conf.arg(name="data")] = field(default_factory=Protocol)
    """Which target behaviours are trained on and tested on."""
    limits: Limits = LIMITS
    """Of the files that are read."""
    harm: HarmChoice = "none"
    """A known harm to the source behaviours."""
    harm_share: float = 0.4
    """The share of the items or users that are harmed."""
    harm_seed: int = 0
    """Which of them."""


def main(arguments: Sequence[str]) -> int:
    """Load, print, audit; 1 if there is a leak.

    Raises:
        ValueError: On bad arguments or data.
        OSError: If a file is missing or the cache cannot be written to.
    """
    config = tyro.cli(DataCommand, prog="run_biao.py data", description=DESCRIPTION, args=arguments)
    dataset = find_dataset(config.data)
    pairs = _scenarios(config, dataset)
    leaks, compared = 0, []
    for number, (source, target) in enumerate(pairs):
        given = data_options(
            config.data,
            root=config.root,
            source=source,
            target=target,
            items=config.items,
            like_threshold=config.like_threshold,
            separator=config.separator,
            source_cut=config.source_cut,
            cache=config.cache,
            limits=config.limits,
            protocol=config.protocol,
            harm=harm_of(config.harm, config.harm_share, config.harm_seed),
        )
        data = load(config.data, **given)
        print("\n" * (number > 0) + summary(data), flush=True)
        for note in data.notes:
            print(bullet(note))
        checks = check(data, dataset)
        if checks:
            compared.append(agrees(checks))
            print(*_comparison(dataset.published[data.name].paper_name, checks), sep="\n")
        leaks += _audited(data)
    if len(pairs) > 1:
        print(f"\n{sum(compared)} of {len(compared)} scenarios match; {leaks} with a leak")
    return int(leaks > 0)


def data_options(
    spec: str,
    *,
    root: Path | None,
    source: str | None,
    target: str | None,
    items: Path | None,
    like_threshold: float | None,
    separator: str | None,
    source_cut: str,
    cache: Path | None,
    limits: Limits,
    protocol: Protocol,
    harm: Harm | None = None,
) -> dict[str, Any]:
    """The arguments of :func:`cdr.data.load` beside `spec` that command-line options stand for.

    Raises:
        ValueError: If an option is missing or does not go with `spec`.
    """
    dataset = find_dataset(spec)
    flags: dict[str, Any] = {"items": items, "cache": cache, "separator": separator}
    flags["like_threshold"] = like_threshold
    cut = None if source_cut == "time" else source_cut
    for flag, value in (*flags.items(), ("source_cut", cut)):
        if value is not None and flag not in dataset.flags:
            raise ValueError(
                f"--{flag.replace('_', '-')} {value} goes with {_GOES_WITH[flag]}, not with "
                f"--data {spec}"
            )
    if root is None and dataset.holds:
        raise ValueError(f"--root is missing: give the folder that holds {dataset.holds}")
    given: dict[str, Any] = {"root": root, "source": source, "target": target, **flags}
    given |= {"harm": harm}
    if limits != LIMITS:
        if dataset.generated:
            raise ValueError(f"--limits goes with real data, not with --data {spec}")
        given["limits"] = limits
    if "source_cut" in dataset.flags:
        given["source_cut"] = source_cut
    if protocol != LAST_ONE:  # what was trained before there were others has no such argument
        given["protocol"] = protocol
    return {name: value for name, value in given.items() if value is not None}


def harm_of(kind: HarmChoice, share: float, seed: int) -> Harm | None:
    """The harm that the options --harm, --harm-share and --harm-seed stand for."""
    return None if kind == "none" else Harm(kind, share, seed)


_GOES_WITH = {
    "items": "a file of ratings",
    "separator": "a file of ratings",
    "like_threshold": "a file of ratings and with --data recbole",
    "cache": "--data " + " or ".join(d.name for d in DATASETS.values() if "cache" in d.flags),
    "source_cut": "real data",
}


def summary(data: CrossDomainData) -> str:
    """The size of a scenario, in three lines."""
    s = data.statistics
    return (
        f"{data.name}: {s['users']:,} users\n"
        f"  source: {s['source']:,} behaviours ({s['source_train']:,} to train on), "
        f"{s['source_items']:,} items\n"
        f"  target: {s['target']:,} behaviours ({s['train']:,} to train on, {s['valid']:,} valid, "
        f"{s['test']:,} test), {s['target_items']:,} items"
    )


def bullet(note: str) -> str:
    """A note on data, below their summary."""
    return _wrapped(f"• {note}")


def _wrapped(text: str) -> str:
    width = min(100, shutil.get_terminal_size((100, 0)).columns)
    return textwrap.fill(text, width, initial_indent="  ", subsequent_indent="    ")


def _audited(data: CrossDomainData) -> bool:
    """Print what the leak audit finds; whether there is a leak."""
    try:
        hidden = audit(data)
    except ValueError as error:
        print(_wrapped(f"Leak audit: FAILED. {error}"))
        return True
    seen = len(data.train) + len(data.valid) + len(data.test)
    print(
        _wrapped(
            f"Leak audit: passed. No history of {len(data.source):,} source and {seen:,} target "
            "behaviours holds its candidate, anything later, or a validation or test behaviour."
            + _hidden(hidden)
        )
    )
    return False


def _hidden(hidden: Hidden) -> str:
    if not any(hidden):
        return ""
    return (
        f" The user had met the candidate's item before in {hidden.source:,} source and "
        f"{hidden.target:,} target histories, where it is hidden."
    )


def _scenarios(config: DataCommand, dataset: Dataset) -> Sequence[tuple[str | None, str | None]]:
    """The scenarios to look at, as (source, target); None stands for the default domain."""
    known = dataset.paper_scenarios
    one = config.source is not None or config.target is not None
    if config.scenarios is not None and (one or not known):
        names = " and ".join(d.name for d in DATASETS.values() if d.paper_scenarios)
        raise ValueError(
            f"--scenarios {' '.join(config.scenarios)} goes with {names} only, and in the place of "
            "--source and --target"
        )
    if not known or one or config.root is None:
        return [(config.source, config.target)]
    pairs = {}
    for name in config.scenarios or known:
        source, _, target = name.partition("-")
        if not source or not target:
            raise ValueError(f"--scenarios {name}: give SOURCE-TARGET, such as {', '.join(known)}")
        pairs[name] = (source, target)
    require(dataset, config.root, pairs, "--scenarios")
    return list(pairs.values())


def _comparison(paper_name: str, checks: Sequence[Check]) -> Iterator[str]:
    """The lines of a table of published and counted numbers."""
    heads = (f"Table 4, {paper_name}", "paper") if paper_name else ("", "published")
    yield f"  {heads[0]:24}{heads[1]:>12}{'here':>12}"
    for one in checks:
        what = one.what.replace("_", " ")
        yield f"  {what:24}{one.expected:12,}{one.got:12,}  {one.verdict}"
    if paper_name:
        yield f"  What the paper counts as source behaviours: {source_reading(checks)}"
