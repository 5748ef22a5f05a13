"""Train a cross-domain recommender with learned behaviour weights, beside its baselines."""

from __future__ import annotations

import json
import logging
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
import tyro
from tqdm import tqdm

from cdr.data.schema import CrossDomainData
from cdr.options import PRESETS, Options, Variant
from cdr.report import LABELS, Report, report
from cdr.run_folder import environment, run_folder, write_json
from cdr.runner import Source, Task, run
from cdr.training import Result

logger = logging.getLogger("cdr")

DESCRIPTION = """\
Train a two-domain recommender in several variants, side by side, and compare them:

  S       the target domain only
  0       source features, no source loss
  base    the mean source loss, weighted by --inner.gamma
  ours    BIAO (WWW'23): a behavioral perceptron learns a weight for every source behaviour
  oracle  the true flags as weights (generated data only)

A run folder keeps config, command, environment, log, metrics, the table, checkpoints and the learned
weight of every source behaviour. Examples:

  run_biao.py
  run_biao.py --data amazon5 --root DATA --source Beauty --target Toys_and_Games --seeds 5
  run_biao.py --data ratings.csv --source books --target toys --items categories.csv
"""

ALL_VARIANTS: tuple[Variant, ...] = ("S", "0", "base", "ours")


@dataclass(frozen=True)
class RunBiao:
    """What to run."""

    data: str = "g1"
    """g1 (generated), amazon5, epinions, or a file (csv, parquet): user, item, rating, timestamp, domain."""
    root: Path | None = None
    """Folder that holds amazon5/ and epinions/; for a file, what its path is relative to."""
    source: str | None = None
    """Source domain; several joined with "+"."""
    target: str | None = None
    """Target domain."""
    items: Path | None = None
    """With a file of ratings: a csv or parquet file with the columns item, category."""
    source_cut: Literal["time", "all"] = "time"
    """Train on source behaviours earlier than the user's validation behaviour, or on all."""
    variants: tuple[Variant, ...] = ALL_VARIANTS
    """Which variants to train. Generated data adds oracle."""
    model: Literal["conet"] = "conet"
    """The recommendation model."""
    seeds: int = 1
    """Seeds 0, 1, …; generated data is drawn anew for each."""
    preset: Literal["default", "paper", "authors"] = "default"
    """Where the options below start from: ours, the paper's text, the authors' code."""
    out: Path | None = None
    """The run folder, which must not exist yet. Default: runs/<time>-<data>."""
    jobs: int = 1
    """Trainings side by side, each in a process with one thread."""
    device: str = "auto"
    """cpu, cuda, cuda:1; auto takes cuda where there is one."""
    options: Annotated[Options, tyro.conf.arg(name="")] = field(default_factory=Options)
    """Model, inner and outer training, perceptron."""


NAMES = {"conet": "CoNet"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, run, report; 2 on bad input, without a traceback."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    config = tyro.cli(
        RunBiao,
        prog="run_biao.py",
        description=DESCRIPTION,
        args=arguments,
        default=RunBiao(options=PRESETS[_preset(arguments)]),
    )
    try:
        biao(config, arguments)
    except (ValueError, OSError) as error:
        print(f"run_biao.py: {error}", file=sys.stderr)
        return 2
    return 0


def _preset(arguments: Sequence[str]) -> str:
    """The preset named on the command line, which the other options' defaults come from."""
    for i, argument in enumerate(arguments):
        name = argument.partition("=")[2] or "".join(arguments[i + 1 : i + 2])
        if argument.partition("=")[0] == "--preset" and name in PRESETS:
            return name
    return "default"


def biao(config: RunBiao, arguments: Sequence[str]) -> Report:
    """Run every variant and seed, write the run folder and print the table."""
    if config.seeds < 1 or config.jobs < 1:
        raise ValueError(f"--seeds {config.seeds} --jobs {config.jobs}: both must be at least 1")
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        # Two threads fight over tensors as small as these: one is up to five times faster.
        torch.set_num_threads(1)
    source = _source(config)
    data = source.load(0)
    variants = config.variants
    if data.relevant is not None and variants == ALL_VARIANTS:
        variants = (*variants, "oracle")
    out = config.out or Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{Path(config.data).stem}"
    started = time.perf_counter()
    with run_folder(out) as folder:
        _print_data(data)
        write_json(folder / "config.json", config)
        (folder / "command.txt").write_text(shlex.join(["run_biao.py", *arguments]) + "\n")
        write_json(folder / "environment.json", environment(device))
        tasks = [
            Task(variant, seed, source, config.options, config.model, device)
            for seed in range(config.seeds)
            for variant in variants
        ]
        results = _train_all(tasks, config.jobs, folder)
        by_variant = {v: [results[v, seed] for seed in range(config.seeds)] for v in variants}
        table = report(by_variant, data, NAMES[config.model], config.preset)
        seconds = time.perf_counter() - started
        _write_metrics(folder, by_variant, data, table, seconds)
        _write_weights(folder, by_variant.get("ours", []), source)
        (folder / "table.md").write_text(table.markdown(), encoding="utf-8")
    print(f"\n{table}\n\n{seconds:.0f} s; everything is in {out}/")
    return table


def _source(config: RunBiao) -> Source:
    generated = config.data == "g1"
    given = {"root": config.root, "source": config.source, "target": config.target}
    given |= {"items": config.items}
    if not generated:
        given["source_cut"] = config.source_cut  # type: ignore[assignment]
    options = tuple((name, value) for name, value in given.items() if value is not None)
    return Source(config.data, options, seeded=generated)


def _print_data(data: CrossDomainData) -> None:
    s = data.statistics
    print(
        f"{data.name}: {s['users']:,} users; source {s['source']:,} behaviours "
        f"({s['source_train']:,} to train on), {s['source_items']:,} items; target "
        f"{s['target']:,} behaviours ({s['train']:,} / {s['valid']:,} / {s['test']:,} train / "
        f"valid / test), {s['target_items']:,} items"
    )


def _train_all(tasks: list[Task], jobs: int, folder: Path) -> dict[tuple[Variant, int], Result]:
    results = {}
    with tqdm(total=len(tasks), unit="training", smoothing=0, dynamic_ncols=True) as bar:
        for task, result in run(tasks, jobs, bar.set_postfix_str):
            results[task.variant, task.seed] = result
            name = f"{task.variant}-seed{task.seed}"
            for record in result.history:
                logger.info("%s %s", name, json.dumps(record))
            torch.save(result.state, folder / f"model-{name}.pt")
            best = max(record["auc"] for record in result.history)
            weight = "" if result.weight_auc is None else f", weight AUC {result.weight_auc:.3f}"
            bar.write(
                f"{NAMES[task.model]}{LABELS[task.variant]} seed {task.seed}: valid AUC {best:.4f}, "
                f"test AUC {result.test.metrics()['auc']:.4f}{weight} "
                f"({len(result.history)} epochs)"
            )
            bar.update()
        bar.set_postfix_str("")
    return results


def _write_metrics(
    folder: Path,
    results: dict[Variant, list[Result]],
    data: CrossDomainData,
    table: Report,
    seconds: float,
) -> None:
    write_json(
        folder / "metrics.json",
        {
            "data": {"name": data.name, **data.statistics},
            "notes": table.notes,
            "seconds": seconds,
            "table": table.rows,
            "runs": {
                variant: [
                    {
                        "seed": seed,
                        "test": result.test.metrics(),
                        "extra_test": result.extra_test and result.extra_test.metrics(),
                        "weight_auc": result.weight_auc,
                        "epochs": result.history,
                        "outer_steps": result.outer,
                    }
                    for seed, result in enumerate(several)
                ]
                for variant, several in results.items()
            },
        },
    )


def _write_weights(folder: Path, results: list[Result], source: Source) -> None:
    """One row per source behaviour and seed: who, what, its weight, the true flag if known."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = []
    for seed, result in enumerate(results):
        if result.weights is None:
            continue
        data = source.load(seed)
        items, rows = data.source_items, data.source
        category = np.asarray(items.category_names, dtype=object)[items.category[rows.item].numpy()]
        columns = {
            "seed": np.full(len(rows), seed, dtype=np.int32),
            "user": data.user_ids[rows.user.numpy()],
            "item": items.ids[rows.item.numpy()],
            "category": category.astype(str),
            "label": rows.label.numpy().astype(bool),
            "weight": result.weights,
        }
        if data.relevant is not None:
            columns["relevant"] = data.relevant.numpy()
        tables.append(pa.table({name: pa.array(column) for name, column in columns.items()}))
    if tables:
        pq.write_table(pa.concat_tables(tables), folder / "weights.parquet")


if __name__ == "__main__":
    sys.exit(main())
