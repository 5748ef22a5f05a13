"""``run_biao.py data``: load a data set, count it, audit it, compare it with what is published."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from cdr.common.arguments import optional
from cdr.data import GENERATED, HOLDS, amazon, audit, load
from cdr.data.manifest import (
    PAPER_STATISTICS,
    PUBLISHED,
    Check,
    agrees,
    check,
    paper_name,
    source_reading,
)
from cdr.data.schema import CrossDomainData

DESCRIPTION = """\
Print a data set's statistics, compare them with published ones, look for leaks.

Examples:

  run_biao.py data amazon --root DATA
  run_biao.py data amazon --root DATA --scenarios Books-Toys CDs-Kitchen
  run_biao.py data recbole --root DATA --source books --target toys
  run_biao.py data ratings.csv --source books --target toys
"""


@dataclass(frozen=True)
class DataCommand:
    """What to look at."""

    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """amazon, amazon5, epinions, recbole, g1, g2, or a csv or parquet file."""
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
    source_cut: Literal["time", "all"] = "time"
    """Keep source behaviours earlier than the user's validation behaviour, or all."""
    cache: Annotated[Path | None, optional("PATH", "ROOT/.cache-reweight")] = None
    """Where amazon keeps what it has read of its files."""


def main(arguments: Sequence[str]) -> int:
    """Load, print, audit; 1 if there is a leak.

    Raises:
        ValueError: On bad arguments or data.
        OSError: If a file is missing or the cache cannot be written to.
    """
    config = tyro.cli(DataCommand, prog="run_biao.py data", description=DESCRIPTION, args=arguments)
    pairs = _scenarios(config)
    leaks, compared = 0, []
    for number, (source, target) in enumerate(pairs):
        given = data_options(
            config.data,
            root=config.root,
            source=source,
            target=target,
            items=config.items,
            source_cut=config.source_cut,
            cache=config.cache,
        )
        data = load(config.data, **given)
        print("\n" * (number > 0) + summary(data), flush=True)
        for note in data.notes:
            print(_wrapped(f"• {note}"))
        checks = check(data) if config.data in PUBLISHED else []
        if checks:
            compared.append(agrees(checks))
            print(*_comparison(data, checks), sep="\n")
        try:
            audit(data)
        except ValueError as error:
            leaks += 1
            print(_wrapped(f"Leak audit: FAILED. {error}"))
        else:
            seen = len(data.train) + len(data.valid) + len(data.test)
            print(
                _wrapped(
                    f"Leak audit: passed. No history of {len(data.source):,} source and {seen:,} "
                    "target behaviours holds its candidate, anything later, or a validation or "
                    "test behaviour."
                )
            )
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
    source_cut: str,
    cache: Path | None,
) -> dict[str, Any]:
    """The arguments of :func:`cdr.data.load` beside `spec` that command-line options stand for.

    Raises:
        ValueError: If an option is missing or does not go with `spec`.
    """
    made_up = spec in GENERATED
    if items is not None and (made_up or spec in HOLDS):
        raise ValueError(f"--items goes with a file of ratings, not with --data {spec}")
    if cache is not None and spec != "amazon":
        raise ValueError(f"--cache goes with --data amazon, not with {spec}")
    if root is None and spec in HOLDS:
        raise ValueError(f"--root is missing: give the folder that holds {HOLDS[spec]}")
    if made_up and source_cut != "time":
        raise ValueError(f"--source-cut {source_cut} goes with real data, not with {spec}")
    given: dict[str, Any] = {"root": root, "source": source, "target": target}
    given |= {"items": items, "cache": cache}
    if not made_up:
        given["source_cut"] = source_cut
    return {name: value for name, value in given.items() if value is not None}


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


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 100, initial_indent="  ", subsequent_indent="    ")


def _scenarios(config: DataCommand) -> Sequence[tuple[str | None, str | None]]:
    one = config.source is not None or config.target is not None
    if config.scenarios is not None and (one or config.data != "amazon"):
        raise ValueError(
            f"--scenarios {' '.join(config.scenarios)} goes with amazon only, and in the place of "
            "--source and --target"
        )
    if config.data != "amazon" or one or config.root is None:
        return [(config.source, config.target)]
    pairs = {}
    for name in config.scenarios or PAPER_STATISTICS:
        source, _, target = name.partition("-")
        if not source or not target:
            raise ValueError(
                f"--scenarios {name}: give SOURCE-TARGET, such as {', '.join(PAPER_STATISTICS)}"
            )
        pairs[name] = (source, target)
    amazon.require(config.root, pairs, "--scenarios")
    return list(pairs.values())


def _comparison(data: CrossDomainData, checks: Sequence[Check]) -> Iterator[str]:
    paper = paper_name(data)
    heads = (f"Table 4, {paper}", "paper") if paper else ("", "published")
    yield f"  {heads[0]:24}{heads[1]:>12}{'here':>12}"
    for one in checks:
        what = one.what.replace("_", " ")
        yield f"  {what:24}{one.expected:12,}{one.got:12,}  {one.verdict}"
    if paper:
        yield f"  What the paper counts as source behaviours: {source_reading(checks)}"
