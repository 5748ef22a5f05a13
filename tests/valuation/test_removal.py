"""Trainings without the worst, random and the best samples."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reweight.valuation import removal_curve

GOODNESS = np.random.default_rng(3).permutation(20) - 10.0  # of the samples 0 to 19
RANKING = np.argsort(GOODNESS)


def total(ids: Any, seed: int) -> float:
    """A score to which every sample adds what it is worth."""
    return float(GOODNESS[ids].sum()) + seed


def test_each_curve_is_the_score_without_these_samples() -> None:
    curve = removal_curve(total, RANKING, shares=(0.0, 0.25, 0.5), seeds=(0, 4))
    ordered = np.sort(GOODNESS)
    assert curve.kept == (20, 15, 10)
    for s, seed in enumerate((0, 4)):
        worst = [ordered[removed:].sum() + seed for removed in (0, 5, 10)]
        best = [ordered[: 20 - removed].sum() + seed for removed in (0, 5, 10)]
        assert curve.scores["worst first"][s].tolist() == worst
        assert curve.scores["best first"][s].tolist() == best
    random = curve.scores["at random"]
    assert (random[:, 0] == curve.scores["worst first"][:, 0]).all()
    assert (random < curve.scores["worst first"])[:, 1:].all()
    assert (random > curve.scores["best first"])[:, 1:].all()


def test_means_and_standard_errors_are_over_the_seeds() -> None:
    curve = removal_curve(total, RANKING, shares=(0.5,), seeds=(0, 1, 5))
    half = np.sort(GOODNESS)[10:].sum()
    assert curve.mean("worst first").tolist() == [half + 2.0]
    # The seeds are 0, 1 and 5: a variance of 7 (with n - 1), divided by three.
    assert math.isclose(curve.standard_error("worst first")[0], math.sqrt(7.0 / 3.0))
    gain, error = curve.gain()
    random = curve.scores["at random"][:, 0] - np.array([0.0, 1.0, 5.0])
    assert math.isclose(gain[0], (half - random).mean())
    assert math.isclose(error[0], random.std(ddof=1) / math.sqrt(3.0))


def test_a_training_is_made_once_for_each_set_and_seed() -> None:
    calls: list[tuple[tuple[int, ...], int]] = []

    def score(ids: Any, seed: int) -> float:
        calls.append((tuple(ids.tolist()), seed))
        return 0.0

    removal_curve(score, RANKING, shares=(0.0, 0.1, 0.5), seeds=(0, 1))
    assert len(calls) == len(set(calls)) == 2 * (3 * 3 - 2)
    assert all(list(ids) == sorted(ids) for ids, _ in calls)
    again = len(calls)
    removal_curve(score, RANKING, shares=(0.0, 0.1, 0.5), seeds=(0, 1))
    assert calls[:again] == calls[again:]  # random removal is that of the seed


def test_one_seed_has_no_standard_error_and_is_told() -> None:
    curve = removal_curve(total, RANKING, shares=(0.0, 0.5), seeds=(0,))
    assert math.isnan(curve.standard_error("at random")[1])
    assert "±" not in str(curve) and "may be chance" in str(curve)


def test_every_seed_can_have_its_own_ranking() -> None:
    rankings = {0: RANKING, 3: RANKING[::-1]}
    curve = removal_curve(total, rankings.__getitem__, shares=(0.5,), seeds=(0, 3))
    best = np.sort(GOODNESS)[10:].sum()
    worst = np.sort(GOODNESS)[:10].sum()
    assert curve.scores["worst first"].tolist() == [[best], [worst + 3.0]]
    one = removal_curve(total, RANKING, shares=(0.5,), seeds=(0, 3))
    assert (one.scores["at random"] == curve.scores["at random"]).all()
    with pytest.raises(ValueError, match=r"rank \[4, 5\] samples"):
        removal_curve(total, lambda seed: range(4 + seed), shares=(0.5,), seeds=(0, 1))


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_a_curve_is_drawn(tmp_path: Path, seeds: tuple[int, ...]) -> None:
    curve = removal_curve(total, RANKING, shares=(0.0, 0.5), seeds=seeds)
    figure = curve.plot(tmp_path / "curve.png", score="test accuracy")
    assert (tmp_path / "curve.png").stat().st_size > 5_000
    (axes,) = figure.axes
    assert axes.get_ylabel() == "test accuracy"
    drawn = {line.get_label(): line.get_ydata() for line in axes.lines}
    for way in ("worst first", "at random", "best first"):
        assert np.array_equal(drawn[way], curve.mean(way))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"worst_first": [0, 1, 1]}, "worst_first: 1 stand more than once"),
        ({"shares": ()}, r"shares=\(\)"),
        ({"shares": (0.0, 1.0)}, "below 1"),
        ({"shares": (0.5, 0.1)}, "must rise"),
        ({"shares": (0.1, 0.11)}, "remove more of the 20"),
        ({"shares": (0.99,)}, "leaves none of 20"),
        ({"seeds": ()}, "seeds"),
        ({"seeds": (1, 1)}, "seeds"),
        ({"train_and_score": lambda ids, seed: math.nan}, "returned nan.*seed 0"),
    ],
)
def test_a_curve_that_makes_no_sense_is_refused(changes: Any, words: str) -> None:
    arguments = {"train_and_score": total, "worst_first": RANKING} | changes
    with pytest.raises(ValueError, match=words):
        removal_curve(**arguments)
