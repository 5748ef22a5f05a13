"""Metrics: equal to scikit-learn and to plain loops, ties included; the paper's RelaImpr."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import roc_auc_score

from cdr.training.metrics import auc, grouped_auc, log_loss, relative_improvement

# Few distinct values, so that ties are the rule.
coarse = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0])
fine = st.floats(0.0, 1.0, width=32)
rows = st.lists(
    st.tuples(st.one_of(coarse, fine), st.booleans(), st.integers(0, 4)), min_size=2, max_size=60
)


def columns(rows: list[tuple[float, bool, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    scores, labels, groups = zip(*rows, strict=True)
    return np.array(scores, dtype=np.float32), np.array(labels, dtype=np.float32), np.array(groups)


@given(rows)
def test_auc_is_that_of_scikit_learn(rows: list[tuple[float, bool, int]]) -> None:
    scores, labels, _ = columns(rows)
    if labels.min() == labels.max():
        assert math.isnan(auc(scores, labels))
    else:
        assert auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


@given(rows)
def test_auc_counts_pairs(rows: list[tuple[float, bool, int]]) -> None:
    scores, labels, _ = columns(rows)
    positive, negative = scores[labels == 1], scores[labels == 0]
    if not len(positive) or not len(negative):
        return
    wins = (positive[:, None] > negative).mean() + 0.5 * (positive[:, None] == negative).mean()
    assert auc(scores, labels) == pytest.approx(wins, abs=1e-12)


def test_auc_of_equal_scores_is_one_half() -> None:
    assert auc(np.zeros(7, dtype=np.float32), np.array([1, 0, 1, 1, 0, 0, 0])) == 0.5


def test_auc_knows_only_the_order() -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.random(200), rng.random(200) < 0.3
    assert auc(scores, labels) == auc(np.exp(scores), labels)
    # Rounding of the subtraction alone.
    assert auc(scores, labels) == pytest.approx(1 - auc(-scores, labels), abs=1e-15)


@given(rows)
def test_grouped_auc_is_that_of_a_plain_loop(rows: list[tuple[float, bool, int]]) -> None:
    scores, labels, groups = columns(rows)
    values, sizes = [], []
    for group in np.unique(groups):
        of_group = groups == group
        if len(np.unique(labels[of_group])) == 2:
            values.append(roc_auc_score(labels[of_group], scores[of_group]))
            sizes.append(of_group.sum())
    found = grouped_auc(scores, labels, groups)
    if not values:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(np.average(values, weights=sizes), abs=1e-12)


@settings(deadline=None)
@given(rows, st.integers(0, 2**32 - 1))
def test_grouped_auc_does_not_see_the_order_of_rows(
    rows: list[tuple[float, bool, int]], seed: int
) -> None:
    scores, labels, groups = columns(rows)
    order = np.random.default_rng(seed).permutation(len(scores))
    found = grouped_auc(scores[order], labels[order], groups[order])
    assert found == pytest.approx(grouped_auc(scores, labels, groups), abs=1e-12, nan_ok=True)


@given(st.lists(st.tuples(st.floats(1e-6, 1 - 1e-6), st.booleans()), min_size=1, max_size=60))
def test_log_loss_is_that_of_scikit_learn(rows: list[tuple[float, bool]]) -> None:
    probabilities, labels = (np.array(column) for column in zip(*rows, strict=True))
    expected = sklearn_log_loss(labels, probabilities, labels=[False, True])
    assert log_loss(probabilities, labels) == pytest.approx(expected, rel=1e-12)


def test_log_loss_stays_finite_where_a_prediction_is_certain_and_wrong() -> None:
    certain = np.array([0.0, 1.0], dtype=np.float32)
    # Clipped at 1e-12; 1 - 1e-12 is exact to 1e-4 of its distance to 1 in float64.
    assert log_loss(certain, np.array([1, 0])) == pytest.approx(-math.log(1e-12), rel=1e-5)
    assert log_loss(certain, np.array([0, 1])) < 1e-11


@pytest.mark.parametrize(
    ("single", "model", "printed"),
    [  # Table 1 of the paper
        (0.7557, 0.7639, 3.21),  # Books-Movies, MiNet+ours over MiNet-S
        (0.7557, 0.7508, -1.92),  # Books-Movies, MiNet-0
        (0.6152, 0.6308, 13.54),  # Elec-Cloth, CoNet+ours over CoNet-S
    ],
)
def test_relative_improvement_is_the_papers(single: float, model: float, printed: float) -> None:
    # Printed with two decimals.
    assert 100 * relative_improvement(model, single) == pytest.approx(printed, abs=0.005 + 1e-9)


def test_relative_improvement_over_chance_is_not_a_number() -> None:
    assert math.isnan(relative_improvement(0.7, 0.5))
    assert relative_improvement(0.7, 0.7) == 0.0
