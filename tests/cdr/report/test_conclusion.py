"""Sentences on learned weights: that nothing was learned is said, and nothing else is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cdr.report.comparison import Comparison
from cdr.report.conclusion import conclusions, on_gains, on_weights
from cdr.report.summary import Summary
from cdr.training import Result, Scores

RNG = np.random.default_rng(3)
NOISE = RNG.standard_normal((3, 4000))
TRUTH = RNG.standard_normal(4000)


def told(*weights: np.ndarray, same_data: bool = True) -> str:
    several = [each.astype(np.float32) for each in weights]
    return " ".join(on_weights("CoNet+ours", several, same_data))


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (1 + 0.01 * NOISE[0], "all near 1"),
        (np.ones(100), "all near 1"),
        (0.34 + 0.003 * NOISE[0], "one weight for the whole source"),
        (np.full(100, 1.98), "one weight for the whole source"),
        (np.abs(0.01 * NOISE[0]), "below .05"),
        (np.zeros(100), "below .05"),
        (np.where(NOISE[0] > 0, 1.999, 0.001), "ends of their range"),
    ],
)
def test_weights_that_tell_nothing_apart_are_named(weights: np.ndarray, words: str) -> None:
    assert words in told(weights)


@pytest.mark.parametrize(
    "weights",
    [
        2 / (1 + np.exp(-TRUTH)),
        1 + 0.1 * TRUTH,
        np.where(TRUTH > 0, 1.9, 0.1),
        np.where(np.arange(4000) % 8 == 0, 2.0, 1 + 0.2 * TRUTH),  # some at the bound
    ],
)
def test_weights_that_differ_are_not(weights: np.ndarray) -> None:
    assert told(weights) == ""


def test_seeds_in_which_it_happened_are_counted() -> None:
    good = 2 / (1 + np.exp(-TRUTH))
    assert told(good, np.ones(4000)).startswith("CoNet+ours in 1 of 2 seeds: nothing was learned")
    assert told(np.ones(4000), np.ones(4000)).startswith("CoNet+ours: nothing was learned")
    both = told(np.zeros(4000), np.ones(4000))
    assert "near 1" in both and "below .05" in both


def test_weights_on_which_seeds_do_not_agree_are_noise() -> None:
    alone = [1 + 0.3 * noise for noise in NOISE]
    assert "weights are noise" in told(*alone)
    assert told(alone[0]) == "" and told(*alone, same_data=False) == ""
    # Half of the variance in common is a correlation of .5.
    assert told(*(1 + 0.3 * (TRUTH + noise) for noise in NOISE)) == ""


ROW = Summary("CoNet+ours", (0.7,), 0.5, 0.7, None, (), ("",), None, ())


def gain(difference: float, low: float, high: float, p: float | None) -> str:
    compared = Comparison(difference, p, low, high, 0.0025)
    (sentence,) = on_gains({"ours": replace(ROW, comparison=compared)})
    return sentence


def test_a_gain_within_its_error_is_none() -> None:
    assert "no gain is shown. +.0010" in gain(0.001, -0.002, 0.004, None)
    assert "no gain is shown" in gain(0.01, 0.005, 0.015, 0.2)  # users agree, seeds do not
    assert "p = 0.200 over seeds" in gain(0.01, 0.005, 0.015, 0.2)
    assert "no gain is shown" in gain(-0.001, -0.004, 0.002, 0.001)
    # 2.8 standard errors of .0025.
    assert "A gain of .0070 would be found" in gain(0.001, -0.002, 0.004, None)


def test_a_gain_and_a_loss_beyond_their_errors_are_told() -> None:
    assert gain(0.01, 0.005, 0.015, 0.0001).startswith("CoNet+ours: a gain of +.0100 AUC")
    assert "p <.001" in gain(0.01, 0.005, 0.015, 0.0001)
    assert "worse than the base model, by .0100" in gain(-0.01, -0.015, -0.005, None)


def test_without_a_base_model_nothing_is_said_of_gains() -> None:
    assert on_gains({"ours": ROW}) == []


def trained(weights: np.ndarray | None) -> Result:
    scores = Scores(np.ones(1, np.float32), np.ones(1, np.float32), np.zeros(1, np.int64))
    kept = None if weights is None else weights.astype(np.float32)
    return Result(scores, None, [], {}, weights=kept)


def test_each_variant_is_judged_by_what_it_is_for() -> None:
    flat, compared = np.ones(9), Comparison(0.001, None, -0.002, 0.004, 0.0015)
    variants = ("S", "base", "ours", "search", "retrain", "random", "constant", "oracle")
    results = {
        name: [trained(flat if name in ("ours", "search", "constant") else None)]
        for name in variants
    }
    rows = {name: replace(ROW, label=name, comparison=compared) for name in variants}
    told = conclusions(results, rows, same_data=True)
    about = [(text.partition(":")[0], "nothing was learned" in text) for text in told]
    # A search is no recommender, a constant tells nothing apart, the oracle learns nothing.
    assert about == [
        ("ours", True),
        ("search", True),
        ("ours", False),
        ("retrain", False),
        ("constant", False),
    ]
