"""How far two hypergradients point the same way."""

from __future__ import annotations

import math

import pytest

from _support.diagnostics import batch, losses, make
from reweight import ConjugateGradient, Identity
from reweight.diagnostics import agreement


def test_a_hypergradient_agrees_with_itself_and_nothing_is_left_behind() -> None:
    rw = make()
    rw.hypergradient(batch(0), batch(1))  # the first one looks at the model
    before = dict(vars(rw))
    found = agreement(rw, batch(0), batch(1), batch(1))
    assert found.other_dev == pytest.approx(1.0) == found.other_dev_influence
    assert vars(rw) == before and all(p.grad is None for p in rw.weighter.parameters())


def test_the_identity_agrees_with_itself_and_less_with_the_inverse() -> None:
    same = agreement(make(Identity(0.5)), batch(0), batch(1))
    assert same.identity == pytest.approx(1.0) == same.identity_influence
    assert same.other_dev is None and "another dev batch" not in str(same)
    inverse = agreement(make(ConjugateGradient(50)), batch(0), batch(1))
    assert inverse.identity_influence < 0.999


def test_the_cosine_of_opposite_dev_losses_is_minus_one_and_told() -> None:
    sign = {0: 1.0, 1: -1.0}
    rw = make(outer_loss=lambda model, b: sign[b] * losses(model, batch(1)).mean())
    found = agreement(rw, batch(0), 0, 1)
    assert found.other_dev == pytest.approx(-1.0)
    assert "disagree" in found.message and found.message in str(found)


def test_a_zero_hypergradient_has_no_direction() -> None:
    rw = make(outer_loss=lambda model, b: b * losses(model, batch(1)).mean())
    found = agreement(rw, batch(0), 1.0, 0.0)
    assert math.isnan(found.other_dev) and "zero" in found.message
