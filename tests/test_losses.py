"""What a model may say about a batch."""

from __future__ import annotations

import math

import pytest
import torch

from reweight import Losses


def test_a_batch_may_be_empty_and_fixed_a_number() -> None:
    losses = Losses(torch.zeros(0), fixed=0.5)
    losses.check_finite()
    assert losses.weighted.shape == (0,)


def test_a_reduced_loss_is_refused() -> None:
    with pytest.raises(ValueError, match=r'reduction="none"'):
        Losses(torch.tensor(1.0))


def test_a_loss_per_element_is_refused_with_its_shape() -> None:
    with pytest.raises(ValueError, match=r"\(4, 3\).*\[B\]"):
        Losses(torch.ones(4, 3))


def test_losses_of_another_type_are_refused() -> None:
    with pytest.raises(TypeError, match=r"losses\.weighted.*int64"):
        Losses(torch.ones(3, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"\blist\b"):
        Losses([1.0, 2.0])  # type: ignore[arg-type]


def test_a_fixed_part_that_is_not_reduced_is_refused() -> None:
    with pytest.raises(ValueError, match=r"losses\.fixed.*\(3,\)"):
        Losses(torch.ones(3), fixed=torch.ones(3))
    assert Losses(torch.ones(3), fixed=torch.ones(1, 1)).fixed is not None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_losses_that_are_not_finite_are_told_by_sample(bad: float) -> None:
    losses = Losses(torch.tensor([1.0, bad, 2.0, bad]))
    with pytest.raises(ValueError, match=rf"\b{bad}\b.*\b1, 3\b.*\b4\b"):
        losses.check_finite()


def test_many_bad_losses_are_counted_and_not_listed() -> None:
    losses = Losses(torch.full((100,), math.nan))
    with pytest.raises(ValueError, match=r"\b95 more.*\b100\b"):
        losses.check_finite()


def test_a_fixed_part_that_is_not_finite_is_told() -> None:
    for fixed in (math.nan, torch.tensor(math.inf)):
        with pytest.raises(ValueError, match=r"losses\.fixed.*\b(nan|inf)\b"):
            Losses(torch.ones(2), fixed=fixed).check_finite()
