"""What a command trains, and how its results are shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cdr.paper.printed import Cells
from cdr.paper.scenarios import GENERATED, Scenario, default_scenarios
from cdr.report import Document
from cdr.runs import Run, Source, Task
from cdr.training import Options, variant_label


@dataclass(frozen=True)
class Method:
    """A way to train a model: a variant, with some options other than those of the command.

    Attributes:
        name: Within its study.
        suffix: What a table puts behind the model's name.
        variant: See :func:`cdr.training.epochs.train`.
        changes: Options by dotted name, as ``("inner.gamma", 0.5)``.
        longer: Factor by which epochs and patience exceed those of the command.
    """

    name: str
    suffix: str
    variant: str
    changes: tuple[tuple[str, Any], ...] = ()
    longer: int = 1

    def options(self, options: Options) -> Options:
        """The options of the command with this method's own changes."""
        inner, n = options.inner, self.longer
        longer = {"inner.epochs": n * inner.epochs, "inner.patience": n * inner.patience}
        return options.changed({**longer, **dict(self.changes)})


@dataclass(frozen=True)
class Cell:
    """One method on one scenario with one model."""

    scenario: Scenario
    model: str
    method: Method


Runs = Mapping[Cell, Mapping[int, Run]]
"""By cell and seed; a seed whose training failed is missing."""


@dataclass(frozen=True)
class Results:
    """What a command has trained.

    Attributes:
        study: Its study.
        sources: By scenario, in the order given.
        runs: By cell and seed.
    """

    study: Study
    sources: Mapping[Scenario, Source]
    runs: Runs


@dataclass(frozen=True)
class Study:
    """A table or a figure: what is trained for it, what is compared, how it is shown.

    A further one is one module with such an object, and its line in :mod:`cdr.paper.studies`.

    Attributes:
        name: Of the command.
        title: Of the table or figure.
        about: One line for the help text.
        methods: In the order of the rows.
        models: Those in the paper.
        document: From the results to tables, plots and notes.
        seeds: How many, unless ``--seeds`` says otherwise.
        in_paper: Whether it is one of the paper's.
        scenarios: By data set, the scenarios that it is made on if none are named; all of a data
            set that is missing here.
        generated: Whether it is made on generated data, whatever the root holds.
        reference: Name of the method that differences are taken to.
        hidden: Names of methods that are trained, but not shown.
        baselines: Those that ``ours`` must beat for its star; none gives no stars, as in the
            paper's Tables 2 and 3, where ours is what the others are compared with.
        printed: The paper's own numbers.
    """

    name: str
    title: str
    about: str
    methods: tuple[Method, ...]
    models: tuple[str, ...]
    document: Callable[[Results], Document]
    seeds: int = 5
    in_paper: bool = True
    scenarios: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    generated: bool = False
    reference: str = "base"
    hidden: tuple[str, ...] = ()
    baselines: tuple[str, ...] = ("S", "0", "base")
    printed: Cells = field(default_factory=dict)

    def only(self, names: Sequence[str]) -> Study:
        """The study with the methods named, and that which differences are taken to.

        Args:
            names: Of methods; none stands for all.

        Raises:
            ValueError: There is no such method.
        """
        known = [method.name for method in self.methods]
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ValueError(
                f"--methods {' '.join(unknown)}: {self.name} has no such row; it has "
                f"{', '.join(known) or 'none'}."
            )
        if not names:
            return self
        wanted = {*names, self.reference}
        return replace(self, methods=tuple(m for m in self.methods if m.name in wanted))


def default_data(study: Study, root: Path | None) -> tuple[str, ...]:
    """The scenarios that a study is made on if none are named.

    Args:
        study: The table or figure.
        root: The folder that holds the data sets.

    Raises:
        ValueError: The folder holds no data set that is known.
    """
    return GENERATED if study.generated else default_scenarios(root, study.scenarios)


def variants(*names: str) -> tuple[Method, ...]:
    """Methods that are variants with the options of the command."""
    return tuple(Method(name, variant_label(name), name) for name in names)


def cells(study: Study, scenarios: Sequence[Scenario], models: Sequence[str]) -> list[Cell]:
    """Every method on every scenario with every model, where it is possible."""
    return [
        Cell(scenario, model, method)
        for scenario in scenarios
        for model in models
        for method in study.methods
        # There is no oracle where the relevant behaviours are not known.
        if scenario.flagged or method.variant != "oracle"
    ]


def tasks(
    cells: Sequence[Cell],
    seeds: Sequence[int],
    sources: dict[Scenario, Source],
    options: dict[str, Options],
    device: str,
) -> dict[tuple[Cell, int], Task]:
    """The training of each cell and seed; those of the first seed come first."""
    return {
        (cell, seed): Task(
            cell.method.variant,
            seed,
            sources[cell.scenario],
            cell.method.options(options[cell.model]),
            device,
        )
        for seed in seeds
        for cell in cells
    }
