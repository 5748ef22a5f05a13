"""All ways to find weights on one log, beside all that needs none."""

from __future__ import annotations

from cdr.paper.evidence import SEARCHED, document
from cdr.paper.study import Method, Study, variants

_GAMMAS = (0.5, 1.0, 2.0)

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
