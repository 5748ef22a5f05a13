"""Rows of result tables for which nothing is trained: leniency, and ensembles over the seeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from cdr.models import MODELS
from cdr.paper.scenarios import Scenario
from cdr.paper.study import Cell, Method, Results
from cdr.report import (
    ABOUT_ENSEMBLES,
    ABOUT_LENIENCY,
    ENSEMBLE,
    ENSEMBLED,
    LENIENCY,
    Seeds,
    between_ensembles,
    ensembled,
    leniency,
)

Untrained = Mapping[Cell, Seeds]
"""By cell and seed what stands in the place of trainings."""


def untrained(results: Results) -> Untrained:
    """The ensembles of the base model and of ours, and the leniency model.

    Leniency is in no way of a model; it has a cell beside each, to be compared with it.
    """
    more: dict[Cell, Seeds] = {}
    for (scenario, model), cells in _beside(results).items():
        for cell in cells:
            name = cell.method.name
            if name in ENSEMBLED and (runs := ensembled(results.runs[cell])):
                method = Method(f"{name}-ensemble", cell.method.suffix + ENSEMBLE, name)
                more[Cell(scenario, model, method)] = runs
    method = Method(LENIENCY, "", LENIENCY)
    for scenario, source in results.sources.items():
        models = [model for where, model in _beside(results) if where == scenario]
        here = [runs for cell, runs in results.runs.items() if cell.scenario == scenario]
        seeds = {seed for runs in here for seed in runs}
        if seeds:
            fitted = leniency(source.load, sorted(seeds), seeded=source.seeded)
            more |= {Cell(scenario, model, method): fitted for model in models}
    return more


def about_untrained(more: Untrained) -> Iterator[str]:
    """Sentences on these rows."""
    names = {cell.method.name for cell in more}
    if names - {LENIENCY}:
        yield ABOUT_ENSEMBLES
    for cell, ours in more.items():
        if cell.method.name == "ours-ensemble":
            base = next(
                (
                    runs
                    for other, runs in more.items()
                    if other.method.name == "base-ensemble"
                    and (other.scenario, other.model) == (cell.scenario, cell.model)
                ),
                {},
            )
            if told := between_ensembles(ours, base):
                yield f"{cell.scenario.heading}, {MODELS[cell.model].label}: {told}"
    if LENIENCY in names:
        yield ABOUT_LENIENCY


def _beside(results: Results) -> dict[tuple[Scenario, str], list[Cell]]:
    """The cells with trainings, by scenario and model."""
    found: dict[tuple[Scenario, str], list[Cell]] = {}
    for cell, seeds in results.runs.items():
        if seeds:
            found.setdefault((cell.scenario, cell.model), []).append(cell)
    return found
