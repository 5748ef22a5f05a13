"""The standard error: against differences that are drawn again and again, and by its definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from cdr.report.comparison import compare
from cdr.report.uncertainty import same_rows, smallest_detectable, standard_error
from cdr.training.evaluation import Scores
from cdr.training.metrics import auc, auc_contributions

Pair = tuple[list[Scores], list[Scores]]


def drawn(
    rng: np.random.Generator,
    num_seeds: int,
    spread: float,
    num_users: int = 60,
    own_data: bool = False,
) -> Pair:
    """Two methods on two rows of each user: users differ in how well each method ranks them, and
    with `spread` seeds differ in how good the first one is."""
    sides: Pair = ([], [])
    for _ in range(num_seeds):
        if own_data or not sides[0]:
            user = np.repeat(np.arange(num_users), 2)
            label = (rng.random(2 * num_users) < 0.5).astype(np.float32)
            common = rng.standard_normal((2, num_users))[:, user]
        strength = 1.0 + spread * rng.standard_normal()
        for side, by, effect in ((sides[0], strength, common[0]), (sides[1], 1.0, common[1])):
            noise = rng.standard_normal(2 * num_users)
            score = by * (label - 0.5) + 0.7 * effect + 0.5 * noise
            side.append(Scores(score.astype(np.float32), label, user))
    return sides


def mean_difference(ours: list[Scores], base: list[Scores]) -> float:
    aucs = [[auc(s.probability, s.label) for s in side] for side in (ours, base)]
    return float(np.mean(aucs[0]) - np.mean(aucs[1]))


@pytest.mark.slow
@pytest.mark.parametrize("num_seeds", [2, 5])
@pytest.mark.parametrize("spread", [0.0, 0.6])
@pytest.mark.parametrize("own_data", [False, True])
def test_it_is_the_spread_over_new_seeds_and_new_users(
    num_seeds: int, spread: float, own_data: bool
) -> None:
    rng = np.random.default_rng(0)
    repeated = [drawn(rng, num_seeds, spread, own_data=own_data) for _ in range(400)]
    variance = np.var([mean_difference(*pair) for pair in repeated], ddof=1)
    told = np.mean([standard_error(*pair) ** 2 for pair in repeated])
    # The mean of the larger of 1 and χ²/ν, for ν = 1 and 4: where only users matter, a variance
    # over so few seeds that is no less than theirs is larger by so much.
    floor = {2: 1.48, 5: 1.27}[num_seeds] if own_data and not spread else 1.0
    # A variance from 400 draws has a relative error of √(2 / 400) = 7 %, three of which are 21 %.
    assert 0.79 < told / variance < 1.21 * floor


@pytest.mark.parametrize("spread", [0.0, 0.6])
def test_either_part_by_itself_is_too_small(spread: float) -> None:
    rng = np.random.default_rng(1)
    ours, base = drawn(rng, 5, spread)
    differences = [mean_difference([a], [b]) for a, b in zip(ours, base, strict=True)]
    of_seeds = np.std(differences, ddof=1) / np.sqrt(5)
    of_users = (compare(ours, base).high - compare(ours, base).low) / (2 * 1.96)
    # The bootstrap's 1000 resamples have a relative error of about 4 %.
    assert standard_error(ours, base) >= max(of_seeds, 0.9 * of_users)


@pytest.mark.parametrize("own_data", [False, True])
def test_seeds_that_are_alike_by_chance_do_not_hide_the_users(own_data: bool) -> None:
    rng = np.random.default_rng(6)
    pairs = [drawn(rng, 2, 0.0, own_data=own_data) for _ in range(200)]
    found = np.array([standard_error(*pair) for pair in pairs])
    assert found.min() > 0.5 * np.median(found)


def test_with_one_seed_it_is_that_of_the_users() -> None:
    ours, base = drawn(np.random.default_rng(2), 1, 0.0, num_users=400)
    found = compare(ours, base)
    # An interval of 1000 resamples is within some 5 % of its width; the formula is of first order.
    assert found.error == pytest.approx((found.high - found.low) / (2 * 1.96), rel=0.1)


def test_equal_predictions_have_no_error() -> None:
    ours, _ = drawn(np.random.default_rng(3), 3, 0.5)
    assert standard_error(ours, ours) == 0.0


def test_the_smallest_gain_is_found_in_four_of_five_cases() -> None:
    gain = smallest_detectable(0.003)
    power = norm.sf(1.96 - gain / 0.003)
    assert power == pytest.approx(0.8, abs=0.001)  # the quantiles have two decimals


def test_rows_of_other_users_or_labels_are_not_the_same() -> None:
    ours, base = drawn(np.random.default_rng(4), 2, 0.5)
    other, _ = drawn(np.random.default_rng(5), 1, 0.5)
    assert same_rows([*ours, *base]) and not same_rows([*ours, *other])


@given(
    st.lists(
        st.tuples(st.sampled_from([0.1, 0.2, 0.5, 0.9]), st.booleans(), st.integers(0, 3)),
        min_size=2,
        max_size=30,
    )
)
def test_a_contribution_is_the_derivative_by_the_weight_of_a_user(
    rows: list[tuple[float, bool, int]],
) -> None:
    score, label, user = (np.array(column) for column in zip(*rows, strict=True))
    found = auc_contributions(score, label, user)
    if label.all() or not label.any():
        assert np.isnan(found).all()
        return
    won = (score[:, None] > score) + 0.5 * (score[:, None] == score)

    def weighted(weight: np.ndarray) -> float:
        w = weight[user]
        pairs = np.outer(w * label, w * ~label)
        return float((pairs * won).sum() / pairs.sum())

    step = 1e-5
    for u, one in enumerate(np.eye(len(found))):
        slope = (weighted(1 + step * one) - weighted(1 - step * one)) / (2 * step)
        # Central differences: an error of the order of step², and rounding of 1e-16 / step.
        assert found[u] == pytest.approx(slope, abs=1e-8)
