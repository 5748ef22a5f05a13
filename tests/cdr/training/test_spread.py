"""Weights that hardly differ, in the same order and with a fixed standard deviation."""

from __future__ import annotations

import numpy as np
import pytest

from cdr.training.spread import WEIGHT_SPREAD, spread


@pytest.mark.parametrize("size", [1e-3, 0.01, 0.1, 0.5, 0.7])
def test_the_order_and_the_mean_are_kept(size: float) -> None:
    weights = np.exp(size * np.random.default_rng(0).normal(size=5000)).astype(np.float32)
    weights /= weights.mean()
    wider = spread(weights)
    assert wider is not None and wider.dtype == np.float32
    # Rounding of a mean and a standard deviation of 5,000 numbers in float32.
    assert wider.mean() == pytest.approx(1, abs=1e-5)
    assert wider.std() == pytest.approx(WEIGHT_SPREAD, abs=1e-5)
    assert (np.diff(wider[np.argsort(weights, kind="stable")]) >= 0).all()


def test_two_weights_become_nothing_and_all() -> None:
    half = np.array([0.99] * 50 + [1.01] * 50, np.float32)
    assert spread(half) == pytest.approx([0] * 50 + [2] * 50, abs=1e-3)
    # Nine of ten alike, which cannot differ by 1: the tenth counts for nothing.
    most = np.array([1.01] * 90 + [0.91] * 10, np.float32)
    assert spread(most) == pytest.approx([10 / 9] * 90 + [0] * 10, abs=1e-5)


def test_what_differs_enough_or_not_at_all_is_left() -> None:
    assert spread(np.array([0.0, 0.0, 3.0], np.float32)) is None
    assert spread(np.ones(9, np.float32)) is None
    # Rounding errors are no order.
    assert spread(np.array([1 - 1e-7, 1, 1 + 1e-7], np.float32)) is None
