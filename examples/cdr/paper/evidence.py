"""Baselines that could explain the gain of learned weights away."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from cdr.models import MODELS
from cdr.paper.baselines import about_untrained, untrained
from cdr.paper.result_table import assemble, oracle_notes
from cdr.paper.scenarios import Scenario
from cdr.paper.study import Cell, Method, Results, Runs, Study, variants
from cdr.paper.table_document import document_of
from cdr.report import Document
from cdr.runs import Run

GAMMAS = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0)
"""Weights of the source loss that the best single one is searched among."""

SEARCHED = "searched"
"""Name of the method that is the best of them."""

_SOLVERS = {"identity": "the gradient itself", "cg": "conjugate gradients"}


def document(results: Results) -> Document:
    """The table with the best single γ, and how that was found."""
    study, runs, notes = results.study, {**results.runs}, []
    for scenario in results.sources:
        for model in dict.fromkeys(cell.model for cell in runs):
            best = searched(results.runs, scenario, model)
            if best is None:
                continue
            cell, seeds, aucs = best
            runs[cell] = seeds
            chosen = dict(cell.method.changes)["inner.gamma"]
            values = ", ".join(f"{gamma:g} {auc:.4f}" for gamma, auc in aucs.items())
            notes.append(
                f"{scenario.heading}, {MODELS[model].label}: γ {chosen:g} has the highest mean "
                f"validation AUC over seeds ({values})."
            )
    more = untrained(results)
    table = assemble(study, in_order(runs, study), more)
    shown = document_of(table, study)
    return replace(
        shown, notes=(*oracle_notes(table), *notes, *shown.notes, *about_untrained(more))
    )


def in_order(runs: Runs, study: Study) -> Runs:
    """The searched γ right behind the base model."""
    order = [method.name for method in study.methods]
    order.insert(order.index("base") + 1, SEARCHED)
    scenarios = list(dict.fromkeys((cell.scenario, cell.model) for cell in runs))

    def place(cell: Cell) -> tuple[int, int]:
        return scenarios.index((cell.scenario, cell.model)), order.index(cell.method.name)

    return {cell: runs[cell] for cell in sorted(runs, key=place)}


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


STUDY = Study(
    name="evidence",
    title="Baselines that could explain the gain away",
    about="baselines that could explain the gain away",
    methods=(
        *variants("S"),
        Method("S-longer", "-S, three times as long", "S", longer=3),
        *variants("0", "base"),
        *(Method(f"gamma-{g:g}", f" γ = {g:g}", "base", (("inner.gamma", g),)) for g in GAMMAS),
        *variants("constant", "loss", "group", "search", "random", "retrain", "ours"),
        *(
            Method(f"ours-{name}", f"+ours by {words}", "ours", (("outer.solver", name),))
            for name, words in _SOLVERS.items()
        ),
        *variants("oracle"),
    ),
    models=("conet",),
    document=document,
    in_paper=False,
    scenarios={
        "amazon": ("amazon:Books:Toys_and_Games",),
        "amazon5": ("amazon5:Beauty:Toys_and_Games",),
        "epinions": ("epinions:3:4",),
    },
    hidden=("search", *(f"gamma-{g:g}" for g in GAMMAS)),
    baselines=("S", "S-longer", "0", "base", SEARCHED),
)
