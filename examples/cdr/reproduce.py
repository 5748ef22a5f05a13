"""Every table and figure of BIAO (WWW'23) by one command each, from a grid that can be resumed."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tyro

from cdr import plots
from cdr.devices import chosen
from cdr.figures import difference_chart, interval_chart, interval_sentences
from cdr.grid import Completed, Grid, complete
from cdr.models import MODELS
from cdr.options import Options, PresetName, preset
from cdr.output_folder import check_output, output_folder
from cdr.run_folder import environment, to_json, write_json
from cdr.runner import Task
from cdr.scenarios import SETS, Scenario, parse
from cdr.studies import STUDIES, Cell, cells, tasks
from cdr.tables import Table, assemble, text_table

logger = logging.getLogger("cdr")

Command = Literal["table1", "table2", "table3", "table5", "figure5", "generated"]

DESCRIPTION = """\
Make a table or a figure of the paper:

  table1     S, 0, base and ours (CoNet, MiNet)
  table2     ours without each branch of the behavioral perceptron
  table3     reorder-and-reuse against splitting off dev data
  table5     as table1, with DASL
  figure5    AUC against the interval of outer steps
  generated  what is learned where the truth is known (g1, g2)

Each finished training is kept in --cache and never repeated: the same command goes on where it
was stopped, and commands share trainings. --data takes g1, g2, amazon, amazon5, epinions or
SPEC:SOURCE:TARGET, several sources joined with "+".

Examples:

  reproduce.py table1 --seeds 5 --jobs 2
  reproduce.py table1 --root DATA --data amazon5:Beauty:Toys_and_Games epinions:3:4
"""


@dataclass(frozen=True)
class Reproduce:
    """What to make."""

    command: tyro.conf.Positional[Command]
    """The table or figure."""
    data: tuple[str, ...] = ()
    """Scenarios; left out: those of the data sets found in --root, or g1 without it."""
    root: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """Folder that holds amazon/, amazon5/ and epinions/."""
    models: tuple[str, ...] = ()
    """Recommendation models; left out: the paper's for this table or figure."""
    seeds: int = 5
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
    out: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """Where the results go; those of the same command are replaced. Left out: results/<command>."""
    options: Annotated[Options, tyro.conf.arg(name="")] = field(default_factory=Options)
    """For all trainings of the command; where a flag is left out, each model takes its preset."""

    def __post_init__(self) -> None:
        if self.seeds < 1 or self.jobs < 1:
            raise ValueError(f"--seeds {self.seeds} --jobs {self.jobs}: both must be at least 1.")
        unknown = [name for name in self.models if name not in MODELS]
        if unknown:
            raise ValueError(
                f"--models {' '.join(unknown)}: there is no such model; there are "
                f"{', '.join(MODELS)}."
            )


_MODELS = {
    "table1": ("minet", "conet"),
    "table2": ("minet", "conet"),
    "table3": ("minet", "conet"),
    "table5": ("dasl",),
    "figure5": ("minet", "conet"),
    "generated": ("conet",),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, train, report; 1 if a training failed, 2 on bad input, without a traceback."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        # Once for each model, so that each starts from its own preset.
        parsed = {model: _parse(arguments, model) for model in _models(arguments)}
        config = replace(next(iter(parsed.values())), models=tuple(parsed))
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
    name = next(iter(_values(arguments, "--preset")), "default")
    start = preset(name if name in get_args(PresetName) else "default", model)  # type: ignore[arg-type]
    return tyro.cli(
        Reproduce,
        prog="reproduce.py",
        description=DESCRIPTION,
        args=list(arguments),
        default=Reproduce(tyro.MISSING, options=start),
    )


def _models(arguments: Sequence[str]) -> list[str]:
    """The models named, or those of the command; the parser complains about all else."""
    named = [name for name in _values(arguments, "--models") if name in MODELS]
    command = next((a for a in arguments if a in _MODELS), "table1")
    return list(dict.fromkeys(named or _MODELS[command]))


def _values(arguments: Sequence[str], flag: str) -> list[str]:
    """What is given with a flag that the defaults of others depend on."""
    found: list[str] = []
    for i, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if name == flag:
            after = takewhile(lambda a: not a.startswith("--"), arguments[i + 1 :])
            found = [value] if value else list(after)
    return found


def reproduce(config: Reproduce, options: dict[str, Options], arguments: Sequence[str]) -> int:
    """Train what is missing, and write and print the results."""
    out = config.out or Path("results") / config.command
    check_output(out, config.command)
    plots.needed()
    device = chosen(config.device)
    scenarios = parse(config.data) if config.data else default_scenarios(config)
    command = shlex.join(["reproduce.py", *arguments])
    study = STUDIES[config.command]
    sources = {scenario: scenario.data(config.root) for scenario in scenarios}
    wanted = tasks(cells(study, scenarios, config.models), config.seeds, sources, options, device)
    log = _Log()
    with log:
        grid = Grid(config.cache, command)
        names = {task: _name(cell, seed) for (cell, seed), task in wanted.items()}
        done = complete(
            grid, list(wanted.values()), config.jobs, names, stack_seeds=config.stack_seeds
        )
        runs: dict[Cell, dict[int, Any]] = {}
        for (cell, seed), task in wanted.items():
            if task in done.runs:
                runs.setdefault(cell, {})[seed] = done.runs[task]
        notes = _data_notes(sources)
        table = assemble(config.command, study, runs, [*_failures(done, names), *notes])
        if config.command == "figure5":
            table = replace(table, notes=(*interval_sentences(table), *table.notes))
        with output_folder(out, config.command) as folder:
            (folder / "table.md").write_text(table.markdown(), encoding="utf-8")
            (folder / "table.csv").write_text(table.csv(), encoding="utf-8")
            if any(e.comparison for e in table.entries):
                plots.save(*_drawn(difference_chart(table), folder / "differences"))
            if config.command == "figure5":
                plots.save(*_drawn(interval_chart(table), folder / "figure5"))
            write_json(folder / "config.json", _config(config, out, options))
            (folder / "command.txt").write_text(command + "\n")
            write_json(folder / "environment.json", environment(device))
            _write_runs(folder / "runs.jsonl", wanted, done)
            (folder / "log.txt").write_text(log.text(), encoding="utf-8")
    print(
        f"\n{_shown(table)}\n\n{done.trained} trained, {len(done.runs) - done.trained} from "
        f"{config.cache}; everything is in {out}/"
    )
    return 1 if done.failures else 0


def default_scenarios(config: Reproduce) -> list[Scenario]:
    """Those of the data sets found; generated data where none is asked for."""
    if config.command == "generated":
        return parse(("g1",))
    if config.root is None:
        return parse(("g1",))
    found = [name for name in SETS if (config.root / name).is_dir()]
    if not found:
        raise ValueError(f"--root {config.root} holds none of {', '.join(SETS)}; give --data too")
    return parse(found)


def _drawn(chart: tuple[plots.Draw, float], path: Path) -> tuple[plots.Draw, Path, float]:
    draw, height = chart
    return draw, path, height


def _name(cell: Cell, seed: int) -> str:
    return f"{cell.scenario.heading} {cell.model} {cell.method.name} seed {seed}"


def _data_notes(sources: dict[Scenario, Any]) -> list[str]:
    notes: dict[str, None] = {}
    for scenario, source in sources.items():
        for note in source.load(0).notes:
            notes[f"{scenario.heading}: {note}"] = None
    return list(notes)


def _config(config: Reproduce, out: Path, options: dict[str, Options]) -> dict[str, Any]:
    """What was asked for; the options as each model got them."""
    return {**vars(replace(config, out=out)), "options": options}


def _failures(done: Completed, names: dict[Task, str]) -> list[str]:
    return [
        f"Missing, because its training failed: {names[task]} ({why})"
        for task, why in done.failures.items()
    ]


def _write_runs(path: Path, wanted: dict[tuple[Cell, int], Task], done: Completed) -> None:
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


def _shown(table: Table) -> str:
    """For the terminal: the scenarios one below the other."""
    parts = [table.title]
    groups, rows = table.grid()
    first = 1
    for heading, heads in groups[1:]:
        body = [[row[0], *row[first : first + len(heads)]] for row in rows]
        parts.append(f"{heading}\n" + text_table(["", *heads], body))
        first += len(heads)
    heads, differences = table.differences()
    if differences:
        parts.append(text_table(heads, differences, left=2))
    parts.append("\n".join(f"• {note}" for note in table.notes))
    return "\n\n".join(parts)


class _Log(logging.Handler):
    """Keeps what is logged, for the folder that is made at the end."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s: %(message)s"))
        self._lines: list[str] = []
        self._loggers = [logging.getLogger(name) for name in ("cdr", "reweight", "py.warnings")]

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(self.format(record))

    def text(self) -> str:
        return "".join(line + "\n" for line in self._lines)

    def __enter__(self) -> None:
        logging.captureWarnings(True)
        for logger in self._loggers:
            logger.setLevel(logging.INFO)
            logger.addHandler(self)

    def __exit__(self, *_: object) -> None:
        logging.captureWarnings(False)
        for logger in self._loggers:
            logger.removeHandler(self)


if __name__ == "__main__":
    sys.exit(main())
