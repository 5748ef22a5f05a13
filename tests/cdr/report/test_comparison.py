"""Comparison: the t-test and the bootstrap against hand numbers and repeated rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_rel

from cdr.report.comparison import _Ranked, compare
from cdr.training.evaluation import Scores
from cdr.training.metrics import auc


def with_auc(percent: int) -> Scores:
    """One negative among 100 positives, so that the AUC is exactly this."""
    probability = np.arange(101, dtype=np.float32) / 101
    label = np.ones(101, dtype=np.float32)
    label[100 - percent] = 0
    return Scores(probability, label, np.arange(101) // 2)


def noisy(seed: int, strength: float, num_users: int = 80) -> Scores:
    rng = np.random.default_rng(seed)
    label = (np.random.default_rng(99).random(num_users) < 0.6).astype(np.float32)
    score = strength * label + rng.standard_normal(num_users)
    return Scores(score.astype(np.float32), label, np.arange(num_users))


def test_the_p_value_is_that_of_the_paired_t_test() -> None:
    ours, base = [with_auc(p) for p in (71, 72, 73)], [with_auc(70)] * 3
    found = compare(ours, base)
    assert found.difference == pytest.approx(0.02)
    # Differences .01, .02, .03: t = .02 / (.01 / √3) = √12, and with two degrees of freedom
    # p = 1 − t / √(2 + t²).
    assert found.p_value == pytest.approx(1 - np.sqrt(12 / 14), rel=1e-6)


def test_the_p_value_is_that_of_scipy() -> None:
    ours, base = [noisy(s, 1.0) for s in range(5)], [noisy(s + 10, 0.7) for s in range(5)]
    sides = [[auc(s.probability, s.label) for s in side] for side in (ours, base)]
    found = compare(ours, base)
    assert found.p_value == pytest.approx(ttest_rel(*sides).pvalue, rel=1e-6)
    assert found.difference == pytest.approx(np.mean(sides[0]) - np.mean(sides[1]), abs=1e-12)
    assert found.low < found.difference < found.high


def test_identical_predictions_do_not_differ() -> None:
    scores = [noisy(0, 1.0), noisy(1, 1.0)]
    found = compare(scores, scores)
    assert (found.difference, found.low, found.high) == (0.0, 0.0, 0.0)
    assert found.p_value is None  # nothing to test


def test_a_single_seed_has_an_interval_but_no_test() -> None:
    found = compare([noisy(0, 2.0)], [noisy(1, 0.0)])
    assert found.p_value is None
    assert 0 < found.low < found.difference < found.high


def test_turning_the_comparison_round_turns_the_signs() -> None:
    a, b = [noisy(0, 1.0), noisy(1, 1.0)], [noisy(2, 0.5), noisy(3, 0.5)]
    one, other = compare(a, b), compare(b, a)
    assert one.difference == -other.difference and one.p_value == other.p_value
    # Quantiles are interpolated from either end.
    assert one.low == pytest.approx(-other.high, abs=1e-12)
    assert one.high == pytest.approx(-other.low, abs=1e-12)


def test_equal_input_gives_an_equal_interval() -> None:
    a, b = [noisy(0, 1.0)], [noisy(1, 0.5)]
    assert compare(a, b) == compare(a, b)
    assert compare(a, b) != compare(a, b, seed=1)


def test_variants_over_different_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        compare([noisy(0, 1.0)], [])


@given(
    st.lists(
        st.tuples(st.sampled_from([0.1, 0.2, 0.5, 0.9]), st.booleans(), st.integers(0, 3)),
        min_size=2,
        max_size=40,
    )
)
def test_a_weighted_auc_is_that_of_repeated_rows(rows: list[tuple[float, bool, int]]) -> None:
    score, label, times = (np.array(column) for column in zip(*rows, strict=True))
    repeated = np.repeat(label, times)
    # Each row is a user of its own.
    ranked = _Ranked(
        Scores(score.astype(np.float32), label.astype(np.float32), np.arange(len(rows)))
    )
    expected = auc(np.repeat(score, times), repeated)
    assert ranked.auc(times) == pytest.approx(expected, abs=1e-12, nan_ok=True)
