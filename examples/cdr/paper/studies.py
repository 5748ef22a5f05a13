"""What each command trains, and what it compares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cdr.paper.scenarios import Scenario
from cdr.runs.grid import Run
from cdr.runs.runner import Source, Task
from cdr.training.options import Options
from cdr.training.variants import label


@dataclass(frozen=True)
class Method:
    """A way to train a model: a variant, with some options other than those of the command.

    Attributes:
        name: within its study.
        suffix: what a table puts behind the model's name.
        variant: see :func:`cdr.training.loop.train`.
        changes: options by dotted name, as ``("inner.gamma", 0.5)``.
        longer: how many times the command's epochs and patience it has.
    """

    name: str
    suffix: str
    variant: str
    changes: tuple[tuple[str, Any], ...] = ()
    longer: int = 1

    def options(self, options: Options) -> Options:
        """The options of the command with this method's own changes."""
        inner, n = options.inner, self.longer
        inner = replace(inner, epochs=n * inner.epochs, patience=n * inner.patience)
        options = replace(options, inner=inner)
        for name, value in self.changes:
            section, _, field = name.partition(".")
            changed = replace(getattr(options, section), **{field: value})
            options = replace(options, **{section: changed})
        return options


@dataclass(frozen=True)
class Study:
    """Methods to train and to show.

    Attributes:
        title: of the table or figure.
        methods: in the order of the rows.
        reference: name of the method that differences are taken to.
        hidden: names of methods that are only trained for RelaImpr to be relative to.
        baselines: those that ``ours`` must beat for its star; none gives no stars, as in the
            paper's Tables 2 and 3, where ours is what the others are compared with.
    """

    title: str
    methods: tuple[Method, ...]
    reference: str = "base"
    hidden: tuple[str, ...] = ()
    baselines: tuple[str, ...] = ("S", "0", "base")


@dataclass(frozen=True)
class Cell:
    """One method on one scenario with one model."""

    scenario: Scenario
    model: str
    method: Method


def _variants(*names: str) -> tuple[Method, ...]:
    return tuple(Method(name, label(name), name) for name in names)


INTERVALS = (5, 10, 20, 100, 200, 300, 400, 500)
"""The paper's, and two shorter ones."""

GAMMAS = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0)
"""Weights of the source loss that the best single one is searched among."""

SEARCHED = "searched"
"""Name of the method that is the best of them."""

_SOLVERS = {"identity": "the gradient itself", "cg": "conjugate gradients"}

STUDIES = {
    "table1": Study("Overall recommendation performance", _variants("S", "0", "base", "ours")),
    "table2": Study(
        "What the two branches of the behavioral perceptron do",
        _variants("S", "ours", "no-global", "no-user"),
        reference="ours",
        hidden=("S",),
        baselines=(),
    ),
    "table3": Study(
        "Reorder-and-reuse against splitting off dev data",
        _variants("S", "split-0.01", "split-0.05", "split-0.1", "ours"),
        reference="ours",
        hidden=("S",),
        baselines=(),
    ),
    "table4": Study("Statistics of the data", ()),
    "table5": Study("Another backbone", _variants("S", "0", "base", "ours")),
    # The weights of a search are those to look at: in one training they also move by chance.
    "figure3": Study("Mean weight by source category", _variants("search")),
    "figure4": Study("Mean weight by length of the histories", _variants("search")),
    "figure5": Study(
        "Inner steps between two outer steps",
        (
            *_variants("base"),
            *(
                Method(f"interval-{n}", f"+ours, interval {n}", "ours", (("outer.interval", n),))
                for n in INTERVALS
            ),
        ),
    ),
    "figure6": Study("Cases with low and high user-specific weights", _variants("search")),
    "generated": Study(
        "Data whose relevant behaviours are known",
        _variants("S", "0", "base", "ours", "search", "retrain", "oracle"),
        hidden=("search",),
    ),
    "evidence": Study(
        "Baselines that could explain the gain away",
        (
            *_variants("S"),
            Method("S-longer", "-S, three times as long", "S", longer=3),
            *_variants("0", "base"),
            *(Method(f"gamma-{g:g}", f" γ = {g:g}", "base", (("inner.gamma", g),)) for g in GAMMAS),
            *_variants("constant", "loss", "group", "search", "random", "retrain", "ours"),
            *(
                Method(f"ours-{name}", f"+ours by {told}", "ours", (("outer.solver", name),))
                for name, told in _SOLVERS.items()
            ),
            *_variants("oracle"),
        ),
        hidden=("search", *(f"gamma-{g:g}" for g in GAMMAS)),
        baselines=("S", "S-longer", "0", "base", SEARCHED),
    ),
}


def cells(study: Study, scenarios: Sequence[Scenario], models: Sequence[str]) -> list[Cell]:
    """Every method on every scenario with every model, where it is possible."""
    return [
        Cell(scenario, model, method)
        for scenario in scenarios
        for model in models
        for method in study.methods
        # There is no oracle where the relevant behaviours are not known.
        if scenario.generated or method.variant != "oracle"
    ]


def tasks(
    cells: Sequence[Cell],
    seeds: int,
    sources: dict[Scenario, Source],
    options: dict[str, Options],
    device: str,
) -> dict[tuple[Cell, int], Task]:
    """The training of each cell and seed: all of the first seed first."""
    return {
        (cell, seed): Task(
            cell.method.variant,
            seed,
            sources[cell.scenario],
            cell.method.options(options[cell.model]),
            device,
        )
        for seed in range(seeds)
        for cell in cells
    }


def searched(
    runs: Mapping[Cell, Mapping[int, Run]], scenario: Scenario, model: str
) -> tuple[Cell, Mapping[int, Run], dict[float, float]] | None:
    """The base model with the γ that is best on the validation rows, by its mean over seeds.

    Returns:
        Its cell and runs, and the mean validation AUC of each γ; None if none was trained.
    """
    found = {}
    for cell, several in runs.items():
        here = (cell.scenario, cell.model) == (scenario, model)
        gamma = dict(cell.method.changes).get("inner.gamma")
        if here and gamma is not None and several:
            auc = sum(run.valid_auc for run in several.values()) / len(several)
            found[gamma] = (auc, several)
    if not found:
        return None
    best = max(found, key=lambda gamma: found[gamma][0])
    method = Method(SEARCHED, ", γ searched", "base", (("inner.gamma", best),))
    aucs = {gamma: auc for gamma, (auc, _) in found.items()}
    return Cell(scenario, model, method), found[best][1], aucs
