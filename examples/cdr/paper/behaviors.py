"""All ways to find weights on one log, beside all that needs none."""

from __future__ import annotations

from dataclasses import replace

from cdr.models import MODELS
from cdr.paper import evidence
from cdr.paper.evidence import SEARCHED
from cdr.paper.study import Method, Results, Study, variants
from cdr.report import Document, compare, mean_auc, paired, signed
from cdr.training import WITH_WEIGHTS

_GAMMAS = (0.5, 1.0, 2.0)
_PLAIN = {"S": "-S", "0": "-0", "base": "the base model"}


def document(results: Results) -> Document:
    """The table, and how cross-fitted weights compare with the best that needs no weights."""
    shown = evidence.document(results)
    return replace(shown, notes=(*against_the_best(results), *shown.notes))


def against_the_best(results: Results) -> list[str]:
    """Cross-fitted weights less the best of the plain models, for each scenario and model.

    The best is chosen by its test AUC, which no user could do: a comparison that favours it.
    """
    notes = []
    for cell, ours in results.runs.items():
        plain = {
            other.method.name: runs
            for other, runs in results.runs.items()
            if (other.scenario, other.model) == (cell.scenario, cell.model)
            and other.method.name in _PLAIN
        }
        if cell.method.name != "crossfit" or not plain:
            continue
        best = max(plain, key=lambda name: mean_auc(plain[name]))
        pairs = paired(ours, plain[best])
        c = compare([a for a, _ in pairs], [b for _, b in pairs])
        low, high = c.interval
        kept = [run.kept for run in ours.values()]
        used = sum(name in WITH_WEIGHTS for name in kept)
        notes.append(
            f"{cell.scenario.heading}, {MODELS[cell.model].label}: cross-fitted weights less "
            f"{_PLAIN[best]}, which has the highest test AUC of {', '.join(plain)}: "
            f"{signed(c.difference)} AUC, 95 % interval over seeds and users [{signed(low)}, "
            f"{signed(high)}]."
        )
        # Trainings kept by an earlier version do not tell.
        if None not in kept:
            notes[-1] += f" The weights are used on {used} of {len(ours)} seeds" + (
                "." if used == len(ours) else "; on the others validation rows prefer none."
            )
    return notes


STUDY = Study(
    name="behaviors",
    title="Weights of single behaviours, and what needs none",
    about="every way to find weights beside what needs none, also after a known harm",
    methods=(
        *variants("S", "0", "base"),
        *(Method(f"gamma-{g:g}", f" γ = {g:g}", "base", (("inner.gamma", g),)) for g in _GAMMAS),
        *variants("ours", "crossfit", "crossfit-random"),
        *variants("influence", "influence-random", "held-out-loss", "held-out-loss-random"),
        *variants("oracle"),
    ),
    models=("conet",),
    document=document,
    in_paper=False,
    hidden=tuple(f"gamma-{g:g}" for g in _GAMMAS),
    baselines=("S", "0", "base", SEARCHED),
)
