"""Train a cross-domain recommender with learned behaviour weights, beside its baselines."""

from __future__ import annotations

import logging
import os
import shlex
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

try:
    import numpy as np
    import torch
    import tyro

    import reweight
    from cdr.common import Processes, write_json
    from cdr.data import DATASETS, LIMITS, CrossDomainData, Limits, Protocol, find_dataset
    from cdr.models import MODELS
    from cdr.report import (
        Learned,
        Report,
        Summary,
        conclusions,
        leniency,
        report,
        write_page,
    )
    from cdr.runs import (
        Source,
        Task,
        data_command,
        environment,
        item_titles,
        launched,
        log_history,
        progress_bar,
        run,
        run_folder,
    )
    from cdr.runs.arguments import optional, values
    from cdr.training import (
        RESTARTED,
        Options,
        PresetName,
        Result,
        check_variants,
        preset,
        remark,
        variant_label,
        warning,
    )
except ModuleNotFoundError as error:
    if __name__ != "__main__":
        raise
    sys.exit(
        f"run_biao.py: {error.name} is not installed; in the root of the repository, run: "
        "pip install -e '.[cdr]'"
    )

logger = logging.getLogger("cdr")

DESCRIPTION = """\
Train a two-domain recommender in several variants and compare them:

  S           the target domain only
  0           source features, no source loss
  base        the mean source loss, weighted by --inner.gamma
  ours        BIAO (WWW'23): a learned weight for every source behaviour
  oracle      the true flags as weights (generated data, or with --harm)
  search      ours with rows held out, for the sake of the weights alone
  retrain     a new model on all rows, with the weights of search, fixed
  random      the same, permuted
  no-global, no-user, split-0.05    BIAO without a branch, or with rows held out
  loss, group, constant             weights of another weighter

The run folder keeps table, metrics, weights, checkpoints, log and config.

Examples:

  run_biao.py
  run_biao.py --retrain-with-learned-weights
  run_biao.py --data amazon5 --root DATA --seeds 5 --jobs 2
  run_biao.py --data ratings.csv --source books --target toys
  run_biao.py data amazon --root DATA      (trains nothing: counts, audits)
"""

_SHOWN = ("ours", "search")  # whose weights are shown and kept
_FIRST = "the data set's first scenario; a file needs one"
_MAIN = "S 0 base ours, and oracle where true flags are known"


_DATA = (
    f"{', '.join(f'{name} ({dataset.about})' for name, dataset in DATASETS.items())}, or a csv or "
    "parquet file with the columns user, item, rating, timestamp, domain. Any separator will do."
)


@dataclass(frozen=True)
class RunBiao:
    """The options of a run."""

    data: Annotated[str, tyro.conf.arg(help=_DATA)] = "g1"
    root: Annotated[Path | None, optional("PATH")] = None
    """Folder that holds the data; for a file, what its path is relative to."""
    source: Annotated[str | None, optional("NAME", _FIRST)] = None
    """Source domain; several joined with "+"."""
    target: Annotated[str | None, optional("NAME", _FIRST)] = None
    """Target domain."""
    items: Annotated[Path | None, optional("PATH")] = None
    """With a file of ratings: a csv or parquet file with the columns item, category, and title if
    there are any."""
    like_threshold: Annotated[float | None, optional("RATING", "3, of 1 to 5")] = None
    """A higher rating is positive; with a file of ratings, or recbole."""
    separator: Annotated[str | None, optional("CHARACTER", "told from the header")] = None
    """Between the columns of a file of ratings: comma, semicolon, tab, '|', '::', …"""
    source_cut: Literal["time", "all"] = "time"
    """Train on source behaviours earlier than the user's validation behaviour, or on all."""
    cache: Annotated[Path | None, optional("PATH", "ROOT/.cache-reweight")] = None
    """Where amazon keeps what it has read of its files."""
    protocol: Annotated[Protocol, tyro.conf.arg(name="data")] = field(default_factory=Protocol)
    """Which target behaviours are trained on and tested on."""
    limits: Limits = LIMITS
    """Of the files that are read."""
    harm: data_command.HarmChoice = "none"
    """A known harm to the source behaviours that are trained on, whose truth is kept as flags: the
    labels of some items' or some users' behaviours are flipped, the behaviours of some users are
    permuted among them within the category, or replaced by those of another domain."""
    harm_share: float = 0.4
    """With --harm: the share of the source items or of the users."""
    harm_seed: int = 0
    """With --harm: which of them; the same for all seeds of the training."""
    variants: Annotated[tuple[str, ...] | None, optional("VARIANT ...", _MAIN)] = None
    """Which variants to train."""
    retrain_with_learned_weights: bool = False
    """Also search for weights with rows held out, and train a new model on all rows with them: the
    variants search and retrain."""
    model: Literal[tuple(MODELS)] = "conet"  # type: ignore[valid-type]
    """The recommendation model."""
    seeds: int = 1
    """Seeds 0, 1, …; generated data is drawn anew for each."""
    preset: PresetName = "default"
    """Where the options below start from: ours, the paper's text, the authors' code."""
    out: Annotated[Path | None, optional("PATH", "runs/<time>-<data>")] = None
    """The run folder, which must not exist yet."""
    checkpoints: Annotated[Path | None, optional("PATH", "none")] = None
    """Where each training keeps its state after every epoch; the same command, with as many
    processes as you like, goes on from there."""
    jobs: int = 1
    """Trainings side by side, each in a process with one thread."""
    stack_seeds: bool = False
    """Train all seeds of a variant in common steps, which fills a GPU; not with generated data."""
    device: str = "auto"
    """cpu, cuda, cuda:1; auto takes cuda where there is one."""
    options: Annotated[Options, tyro.conf.arg(name="")] = field(default_factory=Options)
    """Model, inner and outer training, search, perceptron."""

    def __post_init__(self) -> None:
        if self.seeds < 1 or self.jobs < 1:
            raise ValueError(f"--seeds {self.seeds} --jobs {self.jobs}: both must be at least 1.")
        if self.variants is not None:
            check_variants(self.variants)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, run, report; 2 on bad input, 130 if interrupted, without a traceback."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if arguments[:1] == ["data"]:
            return data_command.main(arguments[1:])
        config = tyro.cli(
            RunBiao,
            prog="run_biao.py",
            description=DESCRIPTION,
            args=arguments,
            default=_start(arguments),
        )
        with launched(config.device) as (processes, device), processes.failing_together():
            biao(replace(config, device=device), arguments, processes)
    except (ValueError, OSError, reweight.RankError) as error:
        print(f"{_program()}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("run_biao.py: interrupted; nothing of this run is kept", file=sys.stderr)
        return 130
    return 0


def _program() -> str:
    """Who speaks, where several processes may."""
    rank = os.environ.get("RANK")
    return "run_biao.py" if rank is None else f"run_biao.py (process {rank})"


def _start(arguments: Sequence[str]) -> RunBiao:
    """The defaults of the options, from the model and the preset named."""
    start: dict[str, Any] = {"preset": "default", "model": "conet"}
    for name, choices in (("preset", get_args(PresetName)), ("model", MODELS)):
        # Other values are left to the parser, which refuses them.
        given = [value for value in values(arguments, f"--{name}") if value in choices]
        start[name] = given[0] if given else start[name]
    return RunBiao(**start, options=preset(start["preset"], start["model"]))


def biao(config: RunBiao, arguments: Sequence[str], processes: Processes) -> None:
    """Run every variant and seed; the first of the processes writes the run folder and prints."""
    source = _source(config)
    if not processes.first:
        processes.wait()
        tasks = _tasks(config, source, _variants(config, source.load(0)))
        _follow(tasks, config, processes)
        return
    out = config.out or Path("runs") / _name(config)
    started = time.perf_counter()
    with run_folder(out) as folder:
        data = source.load(0)
        processes.wait()  # what the first reader of the data keeps is of use to the others
        variants = _variants(config, data)
        # How files were read is said before hours of training, and again below the table.
        notes = map(data_command.bullet, data.reader_notes)
        print(data_command.summary(data), *notes, sep="\n", flush=True)
        config = replace(config, variants=variants, out=out)
        write_json(folder / "config.json", config)
        (folder / "command.txt").write_text(shlex.join(["run_biao.py", *arguments]) + "\n")
        write_json(folder / "environment.json", environment(config.device))
        results = _train_all(_tasks(config, source, variants), config, folder, processes)
        by_variant = {v: [results[v, seed] for seed in range(config.seeds)] for v in variants}
        table = report(
            by_variant,
            data,
            config.options.model_class.label,
            config.preset,
            leniency(source.load, range(config.seeds), seeded=source.seeded),
        )
        told = conclusions(by_variant, table.rows, same_data=not source.seeded)
        table = replace(table, conclusions=told)
        seconds = time.perf_counter() - started
        _write_metrics(folder, by_variant, data, table, seconds)
        _write_weights(folder, by_variant, source)
        (folder / "table.md").write_text(table.markdown(), encoding="utf-8")
        learned = _learned(by_variant, table, source)
        write_page(folder, table.document(), _curves(by_variant, table), learned)
    print(f"\n{table}\n\n{seconds:.0f} s; everything is in {out}/")


def _name(config: RunBiao) -> str:
    """The name of a run folder: when, on which data, by which protocol."""
    parts = (time.strftime("%Y%m%d-%H%M%S"), Path(config.data).stem, *config.protocol.short())
    return "-".join(parts)


def _variants(config: RunBiao, data: CrossDomainData) -> tuple[str, ...]:
    flagged = data.relevant is not None
    variants = config.variants or ("S", "0", "base", "ours", *(["oracle"] if flagged else []))
    if config.retrain_with_learned_weights:
        variants = tuple(dict.fromkeys((*variants, "search", "retrain")))
    if "oracle" in variants and not flagged:
        raise ValueError(
            f"--variants oracle: which behaviours of {data.name} are truly relevant is not known; "
            "there is an oracle for generated data (--data g1 or g2) and after a known harm (as "
            "--harm flip-items) only"
        )
    return variants


def _source(config: RunBiao) -> Source:
    options = data_command.data_options(
        config.data,
        root=config.root,
        source=config.source,
        target=config.target,
        items=config.items,
        like_threshold=config.like_threshold,
        separator=config.separator,
        source_cut=config.source_cut,
        cache=config.cache,
        limits=config.limits,
        protocol=config.protocol,
        harm=data_command.harm_of(config.harm, config.harm_share, config.harm_seed),
    )
    return Source(config.data, tuple(options.items()), seeded=find_dataset(config.data).generated)


def _tasks(config: RunBiao, source: Source, variants: tuple[str, ...]) -> list[Task]:
    return [
        Task(variant, seed, source, config.options, config.device)
        for seed in range(config.seeds)
        for variant in variants
    ]


def _follow(tasks: list[Task], config: RunBiao, processes: Processes) -> None:
    """Take part in the trainings that the first process reports."""
    for _ in _run(tasks, config, lambda _: None, processes):
        pass


def _run(
    tasks: list[Task], config: RunBiao, progress: Callable[[str], None], processes: Processes
) -> Iterator[tuple[Task, Result | Exception]]:
    return run(
        tasks,
        config.jobs,
        progress,
        stack_seeds=config.stack_seeds,
        processes=processes,
        checkpoints=config.checkpoints,
    )


def _train_all(
    tasks: list[Task], config: RunBiao, folder: Path, processes: Processes
) -> dict[tuple[str, int], Result]:
    results = {}
    with progress_bar(len(tasks)) as bar:
        for task, result in _run(tasks, config, bar.set_postfix_str, processes):
            assert isinstance(result, Result)  # an error was raised
            results[task.variant, task.seed] = result
            name = f"{task.variant}-seed{task.seed}"
            log_history(name, result.history, result.restarted)
            torch.save(result.state, folder / f"model-{name}.pt")
            best, epochs = max(record["auc"] for record in result.history), len(result.history)
            weight = "" if result.weight_auc is None else f", weight AUC {result.weight_auc:.3f}"
            bar.write(
                f"{task.options.model_class.label}{variant_label(task.variant)} seed {task.seed}: "
                f"valid AUC {best:.4f}, test AUC {result.test.metrics()['auc']:.4f}{weight} "
                f"({epochs} epoch{'s' * (epochs > 1)})"
            )
            if result.restarted:
                bar.write(f"  restarted: {RESTARTED}")
            if told := warning(result.scores):
                bar.write(told)
            bar.update()
        bar.set_postfix_str("")
    return results


def _curves(
    results: dict[str, list[Result]], table: Report
) -> dict[tuple[str, str], list[list[float]]]:
    """Of each variant, the validation AUC of each epoch of each seed."""
    return {
        ("", table.rows[variant].label): [[r["auc"] for r in each.history] for each in several]
        for variant, several in results.items()
    }


def _learned(results: dict[str, list[Result]], table: Report, source: Source) -> list[Learned]:
    """The weights to show on the page; of data drawn anew for each seed, those of the first."""
    shown = []
    for variant in _SHOWN:
        weights = [w for each in results.get(variant, []) if (w := each.weights) is not None]
        if not weights:
            continue
        label, several = table.rows[variant].label, len(weights) > 1
        if source.seeded and several:
            label, weights = f"{label}, seed 0", weights[:1]
        titles = partial(_titles, source)
        shown.append(Learned(label, source.load(0), np.stack(weights), titles))
    return shown


def _titles(source: Source, items: Collection[str]) -> dict[str, str]:
    """The titles of items; a file of titles that cannot be read must not cost a finished run."""
    try:
        return item_titles(source, items)
    except (ValueError, OSError) as error:
        print(f"run_biao.py: the page shows ids, not titles: {error}", file=sys.stderr)
        return {}


def _write_metrics(
    folder: Path,
    results: dict[str, list[Result]],
    data: CrossDomainData,
    table: Report,
    seconds: float,
) -> None:
    write_json(
        folder / "metrics.json",
        {
            "data": {"name": data.name, **data.statistics},
            "notes": table.notes,
            "conclusions": table.conclusions,
            "seconds": seconds,
            "table": {variant: _row(row) for variant, row in table.rows.items()},
            "runs": {
                variant: [
                    {
                        "seed": seed,
                        "test": result.test.metrics(),
                        "extra_test": result.extra_test and result.extra_test.metrics(),
                        "weight_auc": result.weight_auc,
                        "remark": remark(result.scores),
                        "restarted": result.restarted,
                        "epochs": result.history,
                        "outer_steps": result.outer,
                    }
                    for seed, result in enumerate(several)
                ]
                for variant, several in results.items()
            },
        },
    )


def _row(row: Summary) -> dict[str, object]:
    """A row of the table, for the json file."""
    names = ("label", "auc", "log_loss", "improvement", "weight_auc", "comparison", "remark")
    return {name: getattr(row, name) for name in names}


def _write_weights(folder: Path, results: dict[str, list[Result]], source: Source) -> None:
    """One row per variant, seed and source behaviour: who, what, weight, true flag if known."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    learned = [
        (variant, seed, result.weights)
        for variant in _SHOWN
        for seed, result in enumerate(results.get(variant, []))
    ]
    tables = []
    for variant, seed, weights in learned:
        data = source.load(seed)
        items, rows = data.source_items, data.source
        category = np.asarray(items.category_names, dtype=object)[items.category[rows.item].numpy()]
        columns = {
            "variant": np.full(len(rows), variant),
            "seed": np.full(len(rows), seed, dtype=np.int32),
            "user": data.user_ids[rows.user.numpy()],
            "item": items.ids[rows.item.numpy()],
            "category": category.astype(str),
            "label": rows.label.numpy().astype(bool),
            "weight": weights,
        }
        if data.relevant is not None:
            columns["relevant"] = data.relevant.numpy()
        tables.append(pa.table({name: pa.array(column) for name, column in columns.items()}))
    if tables:
        pq.write_table(pa.concat_tables(tables), folder / "weights.parquet")


if __name__ == "__main__":
    sys.exit(main())
