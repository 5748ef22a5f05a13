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

    from cdr.common.arguments import optional, values
    from cdr.common.jsonable import to_json, write_json
    from cdr.models import MODELS
    from cdr.paper.documents import DOCUMENTS, Results
    from cdr.paper.scenarios import Scenario, default_scenarios, parse, require
    from cdr.paper.studies import STUDIES, Cell, cells, tasks
    from cdr.report import plots
    from cdr.report.page import write_page
    from cdr.runs.devices import chosen
    from cdr.runs.folders import check_output, output_folder
    from cdr.runs.grid import Completed, Grid, Run, complete
    from cdr.runs.logs import KeptLog, logged
    from cdr.runs.machine import environment
    from cdr.runs.runner import Source, Task
    from cdr.training.options import Options, PresetName, preset
except ModuleNotFoundError as error:
    if __name__ != "__main__":
        raise
    sys.exit(
        f"reproduce.py: {error.name} is not installed; in the root of the repository, run: "
        "pip install -e '.[cdr]'"
    )

DESCRIPTION = """\
Make a table or a figure of the paper:

  table1     the model without source (S), without source loss (0), as it is (base), and ours
  table2     ours without each branch of the behavioral perceptron
  table3     reorder-and-reuse against splitting off dev data
  table4     statistics of the data; nothing is trained
  table5     as table1, with DASL
  figure3    mean weight by source category
  figure4    mean weight by length of the user's histories
  figure5    AUC by the interval of outer steps
  figure6    behaviours with low and with high user-specific weights

and beyond it:

  generated  what is learned where the truth is known
  evidence   baselines that could explain the gain away

Each finished training is kept in --cache and never repeated: the same command goes on where it
was stopped, and commands share trainings.

Examples:

  reproduce.py table1 --seeds 5 --jobs 2
  reproduce.py table1 --root DATA --data amazon5:Beauty:Toys_and_Games epinions:3:4
"""

# The models of the paper's table or figure.
_MODELS = {
    "table1": ("minet", "conet"),
    "table2": ("minet", "conet"),
    "table3": ("minet", "conet"),
    "table4": ("conet",),
    "table5": ("dasl",),
    "figure3": ("minet",),
    "figure4": ("minet",),
    "figure5": ("minet", "conet"),
    "figure6": ("minet",),
    "generated": ("conet",),
    "evidence": ("conet",),
}
_SEEDS = {"generated": 6}


@dataclass(frozen=True)
class Reproduce:
    """What to make."""

    command: tyro.conf.Positional[Literal[tuple(_MODELS)]]  # type: ignore[valid-type]
    """The table or figure."""
    data: Annotated[tuple[str, ...], optional("NAME ...", "what --root holds, else g1")] = ()
    """Scenarios: g1, g2, amazon, amazon5, epinions, or one of theirs as SPEC:SOURCE:TARGET, several
    sources joined with "+"; SPEC may also be recbole or a file."""
    root: Annotated[Path | None, optional("PATH", "none")] = None
    """Folder that holds Amazon's original files, amazon5/, epinions/, or atomic files."""
    models: Annotated[tuple[str, ...], optional("NAME ...", "those in the paper")] = ()
    """Recommendation models: conet, minet, dasl, twotower."""
    seeds: Annotated[int | None, optional("INT", "5; generated 6")] = None
    """Seeds 0, 1, …; generated data is drawn anew for each."""
    preset: PresetName = "default"
    """Where the options below start from: ours, the paper's text, the authors' code."""
    jobs: int = 1
    """Trainings side by side, each in a process with one thread."""
    stack_seeds: bool = False
    """Train all seeds of a variant in common steps, which fills a GPU; not with generated data."""
    device: str = "auto"
    """cpu, cuda, cuda:1; auto takes cuda where there is one."""
    cache: Path = Path("runs/grid")
    """Where finished trainings are kept."""
    out: Annotated[Path | None, optional("PATH", "results/<command>")] = None
    """Where the results go, in the place of earlier ones of the same command."""
    options: Annotated[Options, tyro.conf.arg(name="")] = field(default_factory=Options)
    """For all trainings of the command; where a flag is left out, each model takes its preset."""

    def __post_init__(self) -> None:
        for name in ("seeds", "jobs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} {value}: it must be at least 1.")
        unknown = [name for name in self.models if name not in MODELS]
        if unknown:
            raise ValueError(
                f"--models {' '.join(unknown)}: there is no such model; there are "
                f"{', '.join(MODELS)}."
            )


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, train, report, without a traceback.

    Returns:
        The exit code: 1 if a training failed, 2 if all did or on bad input, 130 if interrupted.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        config = _parse(arguments, _models(arguments)[0])
        # Once for each model, so that each starts from its own preset.
        models = dict.fromkeys(config.models or _MODELS[config.command])
        parsed = {model: _parse(arguments, model) for model in models}
        config = next(iter(parsed.values()))
        out = config.out or Path("results") / config.command
        seeds = config.seeds or _SEEDS.get(config.command, 5)
        config = replace(config, models=tuple(parsed), seeds=seeds, out=out)
        options = {model: own.options for model, own in parsed.items()}
        return reproduce(config, options, arguments)
    except (ValueError, OSError) as error:
        print(f"reproduce.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "reproduce.py: interrupted; what was finished is kept, and the same command goes on "
            "from there",
            file=sys.stderr,
        )
        return 130


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
    command = next((a for a in arguments if a in _MODELS), "table1")
    return list(dict.fromkeys(named or _MODELS[command]))


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
    check_output(config.out, config.command)
    plots.needed()
    device = chosen(config.device)
    scenarios = parse(config.data or default_scenarios(config.command, config.root))
    command = shlex.join(["reproduce.py", *arguments])
    sources = {scenario: scenario.data(config.root) for scenario in scenarios}
    require(scenarios, config.root)
    wanted = tasks(
        cells(STUDIES[config.command], scenarios, config.models),
        config.seeds,
        sources,
        options,
        device,
    )
    with logged(KeptLog()) as log:
        names = {task: _name(cell, seed) for (cell, seed), task in wanted.items()}
        grid = Grid(config.cache, command)
        stack = config.stack_seeds
        done = complete(grid, list(wanted.values()), config.jobs, names, stack_seeds=stack)
        failures = [
            f"Missing, for its training failed: {names[t]} ({done.failures[t]})"
            for t in done.failures
        ]
        if failures and not done.runs:
            raise ValueError(f"every training failed; the first: {failures[0]}")
        document = DOCUMENTS[config.command](_results(config.command, sources, wanted, done))
        notes = (*failures, *document.notes, *_data_notes(sources))
        document = replace(document, notes=notes)
        with output_folder(config.out, config.command) as folder:
            (folder / "command.txt").write_text(command + "\n", encoding="utf-8")
            write_json(folder / "config.json", {**vars(config), "options": options})
            write_json(folder / "environment.json", environment(device))
            (folder / "table.md").write_text(document.markdown(), encoding="utf-8")
            (folder / "table.csv").write_text(document.csv(), encoding="utf-8")
            _write_runs(folder / "runs.jsonl", wanted, done)
            for picture in document.pictures:
                picture.save(folder)
            write_page(folder, document, _curves(wanted, done))
            (folder / "log.txt").write_text(log.text, encoding="utf-8")
    kept = len(done.runs) - done.trained
    print(f"\n{document.text()}\n\n{done.trained} trained, {kept} from {config.cache}/; ", end="")
    print(f"everything is in {config.out}/, begin with report.html")
    return 1 if done.failures else 0


def _name(cell: Cell, seed: int) -> str:
    return f"{cell.scenario.heading} {cell.model} {cell.method.name} seed {seed}"


def _results(
    command: str,
    sources: dict[Scenario, Source],
    wanted: dict[tuple[Cell, int], Task],
    done: Completed,
) -> Results:
    runs: dict[Cell, dict[int, Run]] = {}
    for (cell, seed), task in wanted.items():
        if task in done.runs:
            runs.setdefault(cell, {})[seed] = done.runs[task]
    return Results(command, sources, runs)


def _data_notes(sources: dict[Scenario, Source]) -> list[str]:
    """What must be told of results on these data."""
    return [
        f"{scenario.heading}{' (seed 0)' * scenario.generated}: {note}"
        for scenario, source in sources.items()
        for note in source.load(0).notes
    ]


def _curves(
    wanted: dict[tuple[Cell, int], Task], done: Completed
) -> dict[tuple[str, str], list[list[float]]]:
    """By scenario and model, and by method: the validation AUC of each epoch of each seed."""
    curves: dict[tuple[str, str], list[list[float]]] = {}
    for (cell, _), task in wanted.items():
        if task in done.runs:
            model = MODELS[cell.model].label
            place = (f"{cell.scenario.heading} · {model}", model + cell.method.suffix)
            history = [record["auc"] for record in done.runs[task].history]
            curves.setdefault(place, []).append(history)
    return curves


def _write_runs(path: Path, wanted: dict[tuple[Cell, int], Task], done: Completed) -> None:
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
                "epochs": len(run.history),
                "seconds": run.seconds,
                "key": run.key,
            }
            file.write(to_json(record) + "\n")


if __name__ == "__main__":
    sys.exit(main())
