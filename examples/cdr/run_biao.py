"""Train a cross-domain recommender with learned behaviour weights, beside its baselines."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

try:
    import numpy as np
    import tyro

    import reweight
    from cdr.common import ALONE, Processes, encoded, to_json, write_json
    from cdr.data import DATASETS, LIMITS, CrossDomainData, Limits, Protocol, find_dataset
    from cdr.models import MODELS
    from cdr.report import (
        Learned,
        Report,
        Summary,
        conclusions,
        leniency,
        report,
        try_imports,
        write_page,
        written_in_parts,
    )
    from cdr.runs import (
        Completed,
        Ended,
        Grid,
        Run,
        Source,
        Task,
        Unfinished,
        commit,
        complete,
        data_command,
        ending_by_signals,
        environment,
        follow,
        item_titles,
        lasting_output,
        launched,
        out_of_memory,
        run_folder,
        unfinished,
    )
    from cdr.runs.arguments import optional, values, without
    from cdr.training import (
        Options,
        PresetName,
        Saves,
        check_variants,
        preset,
        remark,
        variant_label,
    )
except ModuleNotFoundError as error:
    if __name__ != "__main__":
        raise
    sys.exit(
        f"run_biao.py: {error.name} is not installed; in the root of the repository, run: "
        "pip install -e '.[cdr]'"
    )

DESCRIPTION = """\
Train a two-domain recommender in several variants and compare them:

  S           the target domain only
  0           source features, no source loss
  base        the mean source loss, weighted by --inner.gamma
  ours        BIAO (WWW'23): a learned weight for every source behaviour
  oracle      the true flags as weights (generated data, or with --harm)
  search      ours with rows held out, for the sake of the weights alone
  retrain     a new model on all rows, with the weights of search, fixed
  crossfit    weights learned on folds of the target rows, where these agree,
              and used where they are no worse than no weights at all
  influence, held-out-loss          weights read off models of folds at once
  random, crossfit-random, ...      the weights of search, crossfit, ...,
              permuted
  no-global, no-user, split-0.05    BIAO without a branch, or with rows held out
  loss, group, constant             weights of another weighter

The run folder keeps table, metrics, weights, checkpoints, log and config.

Until a run has ended well, it is named RUN.partial, and --resume goes on.

Examples:

  run_biao.py
  run_biao.py --retrain-with-learned-weights
  run_biao.py --data amazon5 --root DATA --seeds 5 --jobs 2
  run_biao.py --data ratings.csv --source books --target toys
  run_biao.py --resume RUN.partial
  run_biao.py data amazon --root DATA      (trains nothing: counts, audits)
"""

# Whose weights are shown and kept.
_SHOWN = ("ours", "search", "crossfit", "influence", "held-out-loss")
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
    resume: Annotated[Path | None, optional("RUN", "none")] = None
    """Go on with a run that did not finish, by its folder: with its own arguments, but for --jobs
    and --device."""
    checkpoints: Annotated[Path | None, optional("PATH", "the run folder, until it has ended")] = (
        None
    )
    """Where each training keeps its state, after every epoch too, and leaves it; the same command,
    with as many processes as you like, goes on from there."""
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
        if self.checkpoints is not None and self.stack_seeds:
            raise ValueError("--checkpoints does not go with --stack-seeds; leave one out")


_MAY_CHANGE = ("jobs", "device")  # when a run goes on
_WARNING = "run_biao.py: {}"
_LOST = "run_biao.py: stdout cannot be written any more ({}); the run goes on without it"


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, run, report, without a traceback.

    Returns:
        The exit code: 1 if a training failed, 2 if all did or on bad input, 128 and the number of
        the signal if interrupted.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    out: Path | None = None
    with lasting_output(_LOST), ending_by_signals():
        try:
            if arguments[:1] == ["data"]:
                return data_command.main(arguments[1:])
            config, begun = _parsed(arguments)
            out = config.out
            with launched(config.device) as (processes, device), processes.failing_together():
                return biao(replace(config, device=device), arguments, processes, begun)
        except (ValueError, OSError, reweight.RankError) as error:
            return _failed(str(error), out, 2)
        except KeyboardInterrupt as error:
            return _failed("interrupted", out, error.code if isinstance(error, Ended) else 130)
        except Exception as error:
            if out_of_memory(error):
                less = "lower --jobs, or take a machine with more"
                return _failed(f"memory ran out ({_first_line(error)}); {less}", out, 2)
            _failed(f"{type(error).__name__}: {_first_line(error)}", out, 1)
            raise


def _failed(what: str, out: Path | None, code: int) -> int:
    """Say why the run ends, and what is kept of it."""
    kept = "" if out is None else unfinished.told(out, "run_biao.py")
    if what == "interrupted" and not kept:
        kept = "there is nothing of this run to keep"
    print(f"{_program()}: {'; '.join(filter(None, (what, kept)))}", file=sys.stderr)
    return code


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]


def _parsed(arguments: list[str]) -> tuple[RunBiao, Unfinished | None]:
    """The options, and what the run was begun with if it goes on.

    Raises:
        ValueError: A run cannot go on, or not with these arguments.
        OSError: There is no such run.
    """
    given = values(arguments, "--resume")
    if not given or {"-h", "--help"} & set(arguments):
        config = _parse(arguments)
        return replace(config, out=config.out or Path("runs") / _folder_name(config)), None
    partial, out = unfinished.find(Path(given[-1]))
    begun = Unfinished.read(partial)
    own, config = (
        _parse([*begun.arguments, *more]) for more in ([], without(arguments, "--resume"))
    )
    fixed, wanted = (json.loads(to_json(c)) for c in (own, config))
    for name in unfinished.differing(fixed, wanted):
        if name not in _MAY_CHANGE:
            flag = "--" + name.replace("_", "-").removeprefix("options.")
            flag = flag.replace("--protocol.", "--data.")
            raise ValueError(
                f"{flag} is not that of the run in {partial}, which goes on with its own: leave "
                f"{flag} out (--jobs and --device may change), or start another run"
            )
    return replace(config, out=out, resume=partial), begun


def _parse(arguments: Sequence[str]) -> RunBiao:
    return tyro.cli(
        RunBiao,
        prog="run_biao.py",
        description=DESCRIPTION,
        args=arguments,
        default=_start(arguments),
    )


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


def biao(
    config: RunBiao,
    arguments: Sequence[str],
    processes: Processes = ALONE,
    begun: Unfinished | None = None,
) -> int:
    """Run every variant and seed; the first of the processes writes the run folder and prints.

    Args:
        config: With a run folder.
        arguments: The command line, to be kept.
        processes: Those that train together.
        begun: What the run was begun with, if it goes on.

    Returns:
        The exit code: 1 if a training failed and is not in the table, or a part of the report.
    """
    if processes.first:
        try_imports(_WARNING)
    source = _source(config)
    if not processes.first:
        processes.wait()
        tasks = _tasks(config, source, _variants(config, source.load(0)))
        follow(tasks, config.jobs, processes, _saves(config) or (lambda task: None))
        return 0
    assert config.out is not None
    started = time.perf_counter()
    with run_folder(config.out, resumed=begun is not None) as folder:
        data = source.load(0)
        processes.wait()  # what the first reader of the data keeps is of use to the others
        variants = _variants(config, data)
        # How files were read is said before hours of training, and again below the table.
        notes = map(data_command.bullet, data.reader_notes)
        print(data_command.summary(data), *notes, sep="\n", flush=True)
        tasks = _tasks(config, source, variants)
        command = shlex.join(["run_biao.py", *arguments])
        grid = Grid(folder / unfinished.TRAININGS, command, whole=True)
        own = Unfinished(
            arguments=tuple(arguments),
            folder=os.getcwd(),
            commit=commit(),
            data=json.loads(to_json(grid.data(tasks[0]))),
            trainings={_file_name(task): grid.key(task) for task in tasks},
        )
        if begun is None:
            write_json(folder / "config.json", replace(config, variants=variants))
            (folder / "command.txt").write_bytes(encoded(command + "\n"))
            write_json(folder / "environment.json", environment(config.device))
            own.write(folder)
        else:
            begun.check(own, folder)
        done = complete(
            grid,
            tasks,
            config.jobs,
            {task: _name(task) for task in tasks},
            stack_seeds=config.stack_seeds,
            processes=processes,
            saves=_saves(config) if processes.size == 1 or config.checkpoints else _no_saves,
        )
        seeds = _seeds(tasks, done)
        runs = {(task.variant, task.seed): run for task, run in done.runs.items()}
        by_variant = {v: [runs[v, seed] for seed in seeds] for v in variants}
        table = report(
            by_variant,
            data,
            config.options.model_class.label,
            config.preset,
            leniency(source.load, seeds, seeded=source.seeded),
            seeds,
        )
        told = conclusions(by_variant, table.rows, same_data=not source.seeded)
        table = replace(table, conclusions=told, notes=(*_left_out(seeds, done), *table.notes))
        seconds = time.perf_counter() - started
        _keep_models(folder, grid, done)
        with written_in_parts(_WARNING) as parts:
            with parts.part("metrics.json"):
                _write_metrics(folder, by_variant, seeds, data, table, seconds)
            with parts.part("weights.parquet"):
                _write_weights(folder, by_variant, seeds, source)
            with parts.part("table.md"):
                (folder / "table.md").write_bytes(encoded(table.markdown()))
            learned: list[Learned] = []
            with parts.part("the learned weights on the page"):
                learned = _learned(by_variant, seeds, table, source)
            write_page(folder, table.document(), _curves(by_variant, table), learned, parts)
    print(f"\n{table}\n\n{seconds:.0f} s; everything is in {config.out}/")
    return 1 if done.failures or parts.failed else 0


def _folder_name(config: RunBiao) -> str:
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


def _name(task: Task) -> str:
    return f"{task.options.model_class.label}{variant_label(task.variant)} seed {task.seed}"


def _file_name(task: Task) -> str:
    return f"{task.variant}-seed{task.seed}"


def _saves(config: RunBiao) -> Callable[[Task], Saves | None] | None:
    """Where the states of trainings go, if the user has said so."""
    folder = config.checkpoints
    if folder is None:
        return None
    return lambda task: Saves(folder / _file_name(task), required=True)


def _no_saves(task: Task) -> None:
    """The processes of several machines may see no common folder but one that the user names."""


def _seeds(tasks: Sequence[Task], done: Completed) -> list[int]:
    """The seeds of which all variants are trained, which a table compares.

    Raises:
        ValueError: There is none.
    """
    failed = {task.seed for task in done.failures}
    seeds = [seed for seed in dict.fromkeys(task.seed for task in tasks) if seed not in failed]
    if not seeds:
        first, *more = done.failures.values()
        others = f" ({len(more)} more trainings failed)" if more else ""
        raise ValueError(f"{first}{others}")
    return seeds


def _left_out(seeds: Sequence[int], done: Completed) -> list[str]:
    """A sentence on each training that failed, and costs its seed a place in the table."""
    return [
        f"Seed {task.seed} is left out of all rows, since a training of it failed: {reason}"
        for task, reason in done.failures.items()
    ]


def _keep_models(folder: Path, grid: Grid, done: Completed) -> None:
    """Give the model of each training a name in the run folder."""
    for task in done.runs:
        model = folder / f"model-{_file_name(task)}.pt"
        model.unlink(missing_ok=True)
        try:
            os.link(grid.model(task), model)
        except OSError:  # a file system without links
            shutil.copyfile(grid.model(task), model)


def _curves(
    results: dict[str, list[Run]], table: Report
) -> dict[tuple[str, str], list[list[float]]]:
    """Of each variant, the validation AUC of each epoch of each seed."""
    return {
        ("", table.rows[variant].label): [[r["auc"] for r in each.history] for each in several]
        for variant, several in results.items()
    }


def _learned(
    results: dict[str, list[Run]], seeds: Sequence[int], table: Report, source: Source
) -> list[Learned]:
    """The weights to show on the page; of data drawn anew for each seed, those of the first."""
    shown = []
    for variant in _SHOWN:
        weights = [w for each in results.get(variant, []) if (w := each.weights) is not None]
        if not weights:
            continue
        label, several = table.rows[variant].label, len(weights) > 1
        if source.seeded and several:
            label, weights = f"{label}, seed {seeds[0]}", weights[:1]
        titles = partial(_titles, source)
        shown.append(Learned(label, source.load(seeds[0]), np.stack(weights), titles))
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
    results: dict[str, list[Run]],
    seeds: Sequence[int],
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
                        "note": result.note,
                        "kept": result.kept,
                        "epochs": result.history,
                        "outer_steps": result.outer,
                    }
                    for seed, result in zip(seeds, several, strict=True)
                ]
                for variant, several in results.items()
            },
        },
    )


def _row(row: Summary) -> dict[str, object]:
    """A row of the table, for the json file."""
    names = ("label", "auc", "log_loss", "improvement", "weight_auc", "comparison", "remark")
    return {name: getattr(row, name) for name in names}


def _write_weights(
    folder: Path, results: dict[str, list[Run]], seeds: Sequence[int], source: Source
) -> None:
    """One row per variant, seed and source behaviour: who, what, weight, true flag if known."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    learned = [
        (variant, seed, result.weights)
        for variant in _SHOWN
        if variant in results
        for seed, result in zip(seeds, results[variant], strict=True)
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
