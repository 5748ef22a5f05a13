"""Trainings that have learned nothing are called so, and others are not."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from cdr.training import Scores, counted, in_a_cell, remark, warning
from cdr.training.metrics import auc_error

NUM_USERS = 300


def made_up(rng: np.random.Generator, rows: int, strength: float = 0.0) -> Scores:
    """Scores of a model that knows its users, whose labels are of one kind, or nothing of them."""
    user = np.repeat(np.arange(NUM_USERS), rows)
    bias = 2.0 * rng.standard_normal(NUM_USERS)[user]
    label = rng.random(len(user)) < 1 / (1 + np.exp(-bias))
    score = rng.standard_normal(NUM_USERS)[user] + 0.3 * rng.standard_normal(len(user))
    score += strength * label
    return Scores(score.astype(np.float32), label.astype(np.float32), user)


@pytest.mark.parametrize("rows", [1, 10])
def test_of_models_that_know_nothing_a_twentieth_is_not_called_so(rows: int) -> None:
    rng, draws = np.random.default_rng(0), 400
    called = [remark(made_up(rng, rows)) for _ in range(draws)]
    # Four standard deviations of the share in so many draws.
    slack = 4 * np.sqrt(0.95 * 0.05 / draws)
    assert called.count("at chance") / draws == pytest.approx(0.95, abs=slack)
    assert called.count("collapsed") == 0 and "below chance" in called


@pytest.mark.slow
def test_the_error_is_that_of_resampled_users() -> None:
    rng = np.random.default_rng(1)
    scores = made_up(rng, 10, strength=0.5)
    rows = np.arange(len(scores.label)).reshape(NUM_USERS, 10)
    drawn = [rows[rng.integers(NUM_USERS, size=NUM_USERS)].ravel() for _ in range(500)]
    values = [roc_auc_score(scores.label[row], scores.probability[row]) for row in drawn]
    error = auc_error(scores.probability, scores.label, scores.user)
    # A deviation estimated from 500 draws is off by 3 %, four times that at most.
    assert error == pytest.approx(np.std(values), rel=0.13)


def test_the_error_of_one_class_is_unknown_and_nothing_is_said() -> None:
    label = np.ones(4, dtype=np.float32)
    scores = Scores(np.arange(4, dtype=np.float32), label, np.arange(4))
    assert np.isnan(auc_error(scores.probability, label, scores.user)) and remark(scores) == ""


def test_equal_scores_are_a_collapse_whatever_the_labels() -> None:
    for label in ([0, 1, 1], [1, 1, 1]):
        scores = Scores(
            np.full(3, 0.7, dtype=np.float32), np.array(label, dtype=np.float32), np.arange(3)
        )
        assert remark(scores) == "collapsed"
        assert warning(scores) == "  nothing was learned: all scores are equal"


def test_what_is_learned_and_what_is_learned_the_wrong_way_round() -> None:
    rng = np.random.default_rng(2)
    assert remark(made_up(rng, 5, strength=1.0)) == ""
    assert warning(made_up(rng, 5, strength=1.0)) == ""
    assert remark(made_up(rng, 5, strength=-1.0)) == "below chance"
    told = warning(made_up(rng, 5, strength=-1.0))
    assert told.startswith("  nothing was learned: AUC 0.") and told.endswith("is below chance")


@pytest.mark.parametrize(
    ("remarks", "cell", "count"),
    [
        (("", ""), "", ""),
        (("at chance",), "at chance", "at chance 1/1"),
        (("at chance", ""), "", "at chance 1/2"),
        (("collapsed", ""), "collapsed 1/2", "collapsed 1/2"),
        (("collapsed", "collapsed"), "collapsed", "collapsed 2/2"),
        (("collapsed", "at chance"), "collapsed 1/2", "collapsed 1/2, at chance 1/2"),
        (("below chance", "at chance"), "at chance", "at chance 1/2, below chance 1/2"),
        ((), "", ""),
    ],
)
def test_seeds_are_counted(remarks: tuple[str, ...], cell: str, count: str) -> None:
    assert in_a_cell(remarks) == cell and counted(remarks) == count
