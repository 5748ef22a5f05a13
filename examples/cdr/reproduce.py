"""Every table and figure of BIAO (WWW'23) by one command each, from a grid that can be resumed."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal, get_args

try:
    import tyro

    from cdr.common import encoded, to_json, write_json
    from cdr.data import DATASETS, LIMITS, Limits, Protocol
    from cdr.models import MODELS
    from cdr.paper import (
        STUDIES,
        Cell,
        Results,
        Scenario,
        Study,
        cells,
        default_data,
        parse,
        require_files,
        tasks,
    )
    from cdr.report import (
        Curves,
        Document,
        plots,
        try_imports,
        write_page,
        written_in_parts,
    )
    from cdr.runs import (
        Completed,
        Ended,
        Grid,
        KeptLog,
        Run,
        Source,
        Task,
        check_output,
        complete,
        data_command,
        ending_by_signals,
        environment,
        lasting_output,
        logged,
        out_of_memory,
        output_folder,
        usable_device,
    )
    from cdr.runs.arguments import optional, values
    from cdr.training import RESTARTED, Options, PresetName, preset, remark
except ModuleNotFoundError as error:
    if __name__ != "__main__":
        raise
    sys.exit(
        f"reproduce.py: {error.name} is not installed; in the root of the repository, run: "
        "pip install -e '.[cdr]'"
    )


def _help(in_paper: bool) -> str:
    """A line for each table and figure."""
    return "\n".join(
        f"  {study.name:<9}  {study.about}"
        for study in STUDIES.values()
        if study.in_paper == in_paper
    )


DESCRIPTION = f"""\
Make a table or a figure of the paper:

{_help(in_paper=True)}

and beyond it:

{_help(in_paper=False)}

Each finished training is kept in --cache and never repeated: the same command goes on where it
was stopped, and commands share trainings.

Examples:

  reproduce.py table1 --seeds 5 --jobs 2
  reproduce.py table1 --root DATA --data amazon5:Beauty:Toys_and_Games epinions:3:4
  reproduce.py table1 --share 2/4      (on the second of four machines)
"""

_BARE = [name for name, dataset in DATASETS.items() if dataset.generated or dataset.scenarios]
_DATA = (
    f"Scenarios: {', '.join(_BARE)}, or one of theirs as SPEC:SOURCE:TARGET, several sources "
    f'joined with "+"; SPEC may also be {", ".join(n for n in DATASETS if n not in _BARE)} or a '
    "file."
)


_NAMED = 5  # trainings that have learned nothing; how many there are is told as well

Wanted = dict[tuple[Cell, int], Task]
"""The training of each cell and seed."""


@dataclass(frozen=True)
class Reproduce:
    """The options of the command."""

    command: tyro.conf.Positional[Literal[tuple(STUDIES)]]  # type: ignore[valid-type]
    """The table or figure."""
    data: Annotated[tuple[str, ...], optional("NAME ...", "what --root holds, else g1", _DATA)] = ()
    root: Annotated[Path | None, optional("PATH", "none")] = None
    """Folder that holds Amazon's original files, amazon5/, epinions/, or atomic files."""
    limits: Limits = LIMITS
    """Of the files that are read."""
    harm: data_command.HarmChoice = "none"
    """A known harm to the source behaviours of all scenarios, which gives them an oracle; see
    run_biao.py --help."""
    harm_share: float = 0.4
    """With --harm: the share of the source items or of the users."""
    harm_seed: int = 0
    """With --harm: which of them."""
    models: Annotated[tuple[str, ...], optional("NAME ...", "those in the paper")] = ()
    """Recommendation models: conet, minet, dasl, twotower."""
    methods: Annotated[tuple[str, ...], optional("NAME ...", "all rows of the table")] = ()
    """Rows to train and show, by their names; what differences are taken to is always one."""
    seeds: Annotated[int | None, optional("INT", "5; generated 6")] = None
    """How many seeds; generated data is drawn anew for each."""
    first_seed: int = 0
    """The first of them. Choices are made on seeds that are in no table."""
    preset: PresetName = "default"
    """Where the options below start from: ours, the paper's text, the authors' code."""
    jobs: int = 1
    """Trainings side by side, each in a process with one thread; with several GPUs, on each in
    turn."""
    share: Annotated[str | None, optional("K/N", "all")] = None
    """Train only the K-th of N parts and show nothing: for N machines, one part each."""
    stack_seeds: bool = False
    """Train all seeds of a variant in common steps, which fills a GPU; not with generated data."""
    device: str = "auto"
    """cpu, cuda, cuda:1; auto takes cuda where there is one."""
    cache: Path = Path("runs/grid")
    """Where finished trainings are kept."""
    out: Annotated[Path | None, optional("PATH", "results/<command>")] = None
    """Where the results go, in the place of earlier ones of the same command."""
    protocol: Annotated[Protocol, tyro.conf.arg(name="data")] = field(default_factory=Protocol)
    """Which target behaviours are trained on and tested on."""
    options: Annotated[Options, tyro.conf.arg(name="")] = field(default_factory=Options)
    """For all trainings of the command; where a flag is left out, each model takes its preset."""

    def __post_init__(self) -> None:
        for name in ("seeds", "jobs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} {value}: it must be at least 1.")
        if self.first_seed < 0:
            raise ValueError(f"--first-seed {self.first_seed}: it must be 0 or more.")
        _part(self.share)
        unknown = [name for name in self.models if name not in MODELS]
        if unknown:
            raise ValueError(
                f"--models {' '.join(unknown)}: there is no such model; there are "
                f"{', '.join(MODELS)}."
            )


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, train, report, without a traceback.

    Returns:
        The exit code: 1 if a training failed, 2 if all did or on bad input, 128 and the number of
        the signal if interrupted.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    config: Reproduce | None = None
    with lasting_output(_LOST), ending_by_signals():
        try:
            config = _parse(arguments, _models(arguments)[0])
            # Once for each model, so that each starts from its own preset.
            models = dict.fromkeys(config.models or STUDIES[config.command].models)
            parsed = {model: _parse(arguments, model) for model in models}
            config = next(iter(parsed.values()))
            out = config.out or Path("results") / config.command
            seeds = config.seeds or STUDIES[config.command].seeds
            config = replace(config, models=tuple(parsed), seeds=seeds, out=out)
            options = {model: own.options for model, own in parsed.items()}
            return reproduce(config, options, arguments)
        except (ValueError, OSError) as error:
            # What the system or a process has refused, a later call may get.
            begun = isinstance(error, ChildProcessError) or getattr(error, "errno", None)
            return _ended(str(error), config if begun else None, arguments, 2)
        except KeyboardInterrupt as error:
            code = error.code if isinstance(error, Ended) else 130
            return _ended("interrupted", config, arguments, code)
        except Exception as error:
            if out_of_memory(error):
                what = f"memory ran out ({error}); lower --jobs, or take a machine with more"
                return _ended(what, config, arguments, 2)
            _ended(f"{type(error).__name__}: {error}", config, arguments, 1)
            raise


_LOST = "reproduce.py: stdout cannot be written any more ({}); the command goes on without it"


def _ended(what: str, config: Reproduce | None, arguments: Sequence[str], code: int) -> int:
    """Say why the command ends and, if there is something to go on with, how."""
    if config is not None and any(config.cache.glob("??/*/run.json")):
        command = shlex.join(["reproduce.py", *arguments])
        what += (
            f"; what was finished is kept in {config.cache}, and the same command goes on from "
            f"there: {command}"
        )
    print(f"reproduce.py: {what}", file=sys.stderr)
    return code


def _parse(arguments: Sequence[str], model: str) -> Reproduce:
    name = next(iter(values(arguments, "--preset")), "default")
    start = preset(name if name in get_args(PresetName) else "default", model)  # type: ignore[arg-type]
    return tyro.cli(
        Reproduce,
        prog="reproduce.py",
        description=DESCRIPTION,
        args=list(arguments),
        default=Reproduce(tyro.MISSING, options=start),
    )


def _models(arguments: Sequence[str]) -> list[str]:
    """The models named, or those of what looks like the command: one has to be known to parse."""
    named = [name for name in values(arguments, "--models") if name in MODELS]
    command = next((a for a in arguments if a in STUDIES), "table1")
    return list(dict.fromkeys(named or STUDIES[command].models))


def reproduce(config: Reproduce, options: dict[str, Options], arguments: Sequence[str]) -> int:
    """Train what is missing, and write and print the results.

    Args:
        config: with models, seeds and out.
        options: of each model.
        arguments: the command line, to be kept.

    Returns:
        The exit code.
    """
    assert config.out is not None and config.seeds is not None
    study = STUDIES[config.command].only(config.methods)
    if config.share is None:
        check_output(config.out, study.name)
        plots.needed()
        try_imports()
    device = usable_device(config.device)
    harm = data_command.harm_of(config.harm, config.harm_share, config.harm_seed)
    named = parse(config.data or default_data(study, config.root))
    scenarios = [replace(scenario, harm=harm) for scenario in named]
    protocol, limits = config.protocol, config.limits
    sources = {scenario: scenario.data(config.root, protocol, limits) for scenario in scenarios}
    require_files(scenarios, config.root)
    planned = cells(study, scenarios, config.models)
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    wanted = tasks(planned, seeds, sources, options, device)
    command = shlex.join(["reproduce.py", *arguments])
    if config.share is not None:
        done = _complete(_shared(wanted, config.share), config, command)
        print(
            f"\n{len(done.runs)} of {len(set(wanted.values()))} trainings are in {config.cache}/; "
            "when all parts are done, the same command without --share shows the results"
        )
        return 1 if done.failures else 0
    with logged(KeptLog()) as log:
        done = _complete(wanted, config, command)
        document = _document(study, sources, wanted, done)
        with output_folder(config.out, study.name) as folder:
            (folder / "command.txt").write_bytes(encoded(command + "\n"))
            write_json(folder / "config.json", {**vars(config), "options": options})
            write_json(folder / "environment.json", environment(device))
            _write_runs(folder / "runs.jsonl", wanted, done)
            whole = _write_document(folder, document, _curves(wanted, done))
            (folder / "log.txt").write_bytes(encoded(log.text))
    kept = len(done.runs) - done.trained
    print(f"\n{document.text()}\n\n{done.trained} trained, {kept} from {config.cache}/; ", end="")
    print(f"everything is in {config.out}/, begin with report.html")
    return 1 if done.failures or not whole else 0


def _part(share: str | None) -> tuple[int, int]:
    """K and N of --share K/N.

    Raises:
        ValueError: There is no such part.
    """
    k, slash, n = (share or "1/1").partition("/")
    if slash and k.isdecimal() and n.isdecimal() and 1 <= int(k) <= int(n):
        return int(k), int(n)
    raise ValueError(f"--share {share}: give K/N with K from 1 to N, as 2/4 for the second of four")


def _shared(wanted: Wanted, share: str) -> Wanted:
    """The trainings of one machine; each with its teacher, whose weights it waits for."""
    k, n = _part(share)
    first = {task: task.teacher or task for task in wanted.values()}
    place = {task: i for i, task in enumerate(dict.fromkeys(first.values()))}
    return {key: task for key, task in wanted.items() if place[first[task]] % n == k - 1}


def _complete(wanted: Wanted, config: Reproduce, command: str) -> Completed:
    """Train what the grid does not hold yet.

    Raises:
        ValueError: Every training failed.
    """
    names = {task: _name(cell, seed) for (cell, seed), task in wanted.items()}
    grid = Grid(config.cache, command)
    stack = config.stack_seeds
    done = complete(grid, list(wanted.values()), config.jobs, names, stack_seeds=stack)
    if done.failures and not done.runs:
        raise ValueError(f"every training failed; the first: {_failures(names, done)[0]}")
    return done


def _document(
    study: Study, sources: dict[Scenario, Source], wanted: Wanted, done: Completed
) -> Document:
    """The tables and plots, with notes on failed trainings and on the data."""
    runs: dict[Cell, dict[int, Run]] = {}
    for (cell, seed), task in wanted.items():
        if task in done.runs:
            runs.setdefault(cell, {})[seed] = done.runs[task]
    document = study.document(Results(study, sources, runs))
    names = {task: _name(cell, seed) for (cell, seed), task in wanted.items()}
    notes = (
        *_failures(names, done),
        *_nothing_learned(names, done),
        *_begun_again(names, done),
        *document.notes,
        *_data_notes(sources),
    )
    return replace(document, notes=notes)


def _failures(names: dict[Task, str], done: Completed) -> list[str]:
    """A sentence for each training that failed."""
    return [
        f"Missing, for its training failed: {names[task]} ({reason})"
        for task, reason in done.failures.items()
    ]


def _nothing_learned(names: dict[Task, str], done: Completed) -> list[str]:
    """A sentence on the trainings that have learned nothing: not every study has a table."""
    found = [
        f"{names[task]} ({told})" for task, run in done.runs.items() if (told := remark(run.scores))
    ]
    if not found:
        return []
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return [
        f"Nothing was learned in {len(found)} of {len(done.runs)} trainings: "
        f"{', '.join(found[:_NAMED])}{more}."
    ]


def _begun_again(names: dict[Task, str], done: Completed) -> list[str]:
    """A sentence on the trainings that were begun once more."""
    found = [names[task] for task, run in done.runs.items() if run.restarted]
    return [f"Restarted once, {', '.join(found)}: {RESTARTED}."] if found else []


def _write_document(folder: Path, document: Document, curves: Curves) -> bool:
    """Write the tables, the numbers, the plots and the page; whether all could be made."""
    with written_in_parts("reproduce.py: {}") as parts:
        with parts.part("table.md"):
            (folder / "table.md").write_bytes(encoded(document.markdown()))
        with parts.part("table.csv"):
            (folder / "table.csv").write_bytes(encoded(document.csv()))
        for picture in document.pictures:
            with parts.part(f"the picture {picture.name}"):
                picture.save(folder)
        write_page(folder, document, curves, parts=parts)
    return not parts.failed


def _name(cell: Cell, seed: int) -> str:
    return f"{cell.scenario.heading} {cell.model} {cell.method.name} seed {seed}"


def _data_notes(sources: dict[Scenario, Source]) -> list[str]:
    """The notes of the data of each scenario."""
    return [
        f"{scenario.heading}{' (seed 0)' * scenario.generated}: {note}"
        for scenario, source in sources.items()
        for note in source.notes
    ]


def _curves(wanted: Wanted, done: Completed) -> Curves:
    """By scenario and model, and by method: the validation AUC of each epoch of each seed."""
    curves: dict[tuple[str, str], list[list[float]]] = {}
    for (cell, _), task in wanted.items():
        if task in done.runs:
            model = MODELS[cell.model].label
            place = (f"{cell.scenario.heading} · {model}", model + cell.method.suffix)
            history = [record["auc"] for record in done.runs[task].history]
            curves.setdefault(place, []).append(history)
    return curves


def _write_runs(path: Path, wanted: Wanted, done: Completed) -> None:
    """A line for each training."""
    with path.open("w", encoding="utf-8") as file:
        for (cell, seed), task in wanted.items():
            run = done.runs.get(task)
            if run is None:
                continue
            record = {
                "scenario": str(cell.scenario),
                "model": cell.model,
                "method": cell.method.name,
                "seed": seed,
                "test": run.test.metrics(),
                "extra_test": run.extra_test and run.extra_test.metrics(),
                "valid_auc": run.valid_auc,
                "weight_auc": run.weight_auc,
                "remark": remark(run.scores),
                "restarted": run.restarted,
                "epochs": len(run.history),
                "seconds": run.seconds,
                "key": run.key,
            }
            file.write(to_json(record) + "\n")


if __name__ == "__main__":
    sys.exit(main())
