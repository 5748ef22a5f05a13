"""Cross-fitted weights beside the best that needs none."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from made_up import G1, aucs, runs

from cdr.paper.behaviors import against_the_best
from cdr.paper.studies import STUDIES
from cdr.paper.study import Results
from cdr.report.comparison import compare
from cdr.report.rounded import signed
from cdr.training.procedure import PLAIN

BEHAVIORS = STUDIES["behaviors"]


@pytest.mark.parametrize("best", ["S", "0", "base"])
def test_the_best_is_that_of_the_highest_test_auc(best: str) -> None:
    strengths = {"S": 0.5, "0": 0.5, "base": 0.5, "crossfit": 1.0} | {best: 0.8}
    made = runs(BEHAVIORS, strengths)
    (note,) = against_the_best(Results(BEHAVIORS, {}, made))
    assert f"less {'the base model' if best == 'base' else f'-{best}'}, which" in note
    of = {cell.method.name: several for cell, several in made.items()}
    difference = np.mean(aucs(of["crossfit"])) - np.mean(aucs(of[best]))
    assert difference > 0 and f": {signed(difference)} AUC" in note
    told = compare(
        [run.test for run in of["crossfit"].values()], [run.test for run in of[best].values()]
    )
    low, high = told.interval
    assert low < difference < high and high - low == pytest.approx(2 * 1.96 * told.error)


def test_it_is_told_on_how_many_seeds_the_weights_are_used() -> None:
    made = runs(BEHAVIORS, {"0": 0.5, "base": 0.5, "crossfit": 1.0})
    of = {cell.method.name: several for cell, several in made.items()}["crossfit"]
    kept = ("crossfit", "spread", *PLAIN)
    for (seed, run), choice in zip(of.items(), itertools.cycle(kept), strict=False):
        of[seed] = replace(run, kept=choice)
    used = sum(run.kept in kept[:2] for run in of.values())
    (note,) = against_the_best(Results(BEHAVIORS, {}, made))
    assert 0 < used < len(of) and f"used on {used} of {len(of)} seeds" in note
    # As it is read of one that an earlier version has kept.
    of[seed] = replace(run, kept=None)
    (note,) = against_the_best(Results(BEHAVIORS, {}, made))
    assert note.endswith("].")


def test_nothing_is_said_where_one_of_them_is_missing() -> None:
    for strengths in ({"base": 0.5}, {"crossfit": 1.0}, {"base": 0.5, "ours": 1.0}):
        assert against_the_best(Results(BEHAVIORS, {}, runs(BEHAVIORS, strengths))) == []
    assert (
        G1.heading
        in against_the_best(Results(BEHAVIORS, {}, runs(BEHAVIORS, {"0": 0.5, "crossfit": 1.0})))[0]
    )
