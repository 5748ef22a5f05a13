"""Where training stands, as the gradient of the inner problem shows it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from _support.checking import DEV, SIZE, TRAIN, at_rest, make, with_ids
from _support.problems import FreeWeights, mean_squared_error, squared_errors
from reweight import Losses, check_hypergradient

TRAIN_DOUBLE, DEV_DOUBLE = (
    tuple(t.double() if t.is_floating_point() else t for t in b) for b in (TRAIN, DEV)
)

RAW = torch.randn(SIZE, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
WEIGHTS = torch.nn.functional.softplus(RAW) / math.log(2.0)


def with_fixed(model: nn.Module, b: Any) -> Losses:
    return Losses(squared_errors(model, b), mean_squared_error(model, DEV_DOUBLE), b[2])


def weighted(model: nn.Module) -> Tensor:
    return WEIGHTS * squared_errors(model, TRAIN_DOUBLE)


def decay(model: nn.Module, rate: float, matrices_only: bool = False) -> Tensor:
    chosen = [p for p in model.parameters() if p.ndim > 1 or not matrices_only]
    return 0.5 * rate * sum((p.square().sum() for p in chosen), torch.zeros(()).double())


def position(
    loop: Callable[[nn.Module], Tensor],
    told: float | None = None,
    losses: Any = with_ids,
    reduction: Any = "mean",
    optimizer: Any = torch.optim.SGD,
) -> str:
    """What is said of a model that a loop has trained with a loss of its own."""
    model = at_rest(loop)
    weighter = FreeWeights(SIZE).double()
    with torch.no_grad():
        weighter.raw.copy_(RAW)
    known = None
    if told is not None:
        known = optimizer(model.parameters(), lr=0.1, weight_decay=told)
    rw = make(model, weighter=weighter, losses=losses, reduction=reduction, optimizer=known)
    report = check_hypergradient(rw, TRAIN_DOUBLE, DEV_DOUBLE, rtol=1e-6)
    assert report.ok  # the comparison takes wrap's word for it
    assert "".join(report.position.split()) in "".join(str(report).split())
    return report.position


@pytest.mark.parametrize("told", [None, 0.0, 0.3])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_loop_that_trains_what_wrap_was_told_is_confirmed(told: Any, reduction: Any) -> None:
    def loop(model: nn.Module) -> Tensor:
        total: Tensor = getattr(weighted(model), reduction)()
        return total + decay(model, told or 0.0)

    said = position(loop, told, reduction=reduction)
    assert re.search("(?<!not )at (the|a) minimum", said)


def test_weight_decay_that_wrap_was_not_told_of_is_told() -> None:
    said = position(lambda m: weighted(m).mean() + decay(m, 0.3))
    assert re.search(r"weight decay\b.* 0\.3\b", said) and "matrices" not in said
    assert "optimizer=" in said and "fixed=" in said
    said = position(lambda m: weighted(m).mean() + decay(m, 0.3, matrices_only=True))
    assert re.search(r"weight decay\b.* 0\.3\b.*matrices", said)
    # Seen long before it matters.
    said = position(lambda m: weighted(m).mean() + decay(m, 1e-2))
    assert re.search(r"weight decay\b.* 0\.01\b", said)


def test_other_weight_decay_than_the_optimizers_is_told() -> None:
    def loop(rate: float) -> Callable[[nn.Module], Tensor]:
        return lambda m: weighted(m).mean() + decay(m, rate)

    said = position(loop(0.3), told=0.1)
    assert re.search(r"\b0\.2 more weight decay\b.*optimizer", said)
    assert re.search(r"\b0\.3\b.*\b0\.1\b", said)
    said = position(loop(0.1), told=0.3)
    assert re.search(r"\b0\.2 less weight decay\b.*optimizer", said)
    said = position(loop(0.0), told=0.3, optimizer=torch.optim.AdamW)
    assert re.search(r"\b0\.3 less weight decay\b.*AdamW", said) and "decoupled" in said


@pytest.mark.parametrize("losses", [with_ids, with_fixed])
def test_another_reduction_is_told(losses: Any) -> None:
    """With a fixed part, or with weight decay, which a factor is measured against."""

    def loop(factor: float) -> Callable[[nn.Module], Tensor]:
        def value(model: nn.Module) -> Tensor:
            fixed = mean_squared_error(model, DEV_DOUBLE) if losses is with_fixed else 0.0
            return factor * weighted(model).mean() + fixed + decay(model, 0.3)

        return value

    said = position(loop(SIZE), 0.3, losses)
    assert re.search('reduction="mean".*reduction="sum"', said)
    said = position(loop(1.0), 0.3, losses, "sum")
    assert re.search('reduction="sum".*reduction="mean"', said)
    said = position(loop(1.0 / SIZE), 0.3, losses)
    assert re.search(rf"divide\b.*\b{SIZE}\b", said)


def test_another_factor_is_told_beside_fixed_losses() -> None:
    said = position(
        lambda m: 0.4 * weighted(m).mean() + mean_squared_error(m, DEV_DOUBLE), losses=with_fixed
    )
    assert re.search(r"\b0\.4\b.*\bfixed\b", said)


def test_a_loop_without_weights_is_told() -> None:
    said = position(lambda m: squared_errors(m, TRAIN_DOUBLE).mean() + decay(m, 0.3), 0.3)
    assert re.search(r"without\b.*\bweights\b", said) and "rw.loss(batch)" in said


def test_a_model_that_is_not_at_a_minimum_is_told() -> None:
    said = check_hypergradient(make(), TRAIN, DEV).position
    assert "not at a minimum" in said and "only at a minimum" in said


def test_two_parameters_prove_nothing() -> None:
    """A multiple of the parameters comes near any gradient of two dimensions."""
    one, dev = (tuple(t[:, :1] if t.ndim > 1 else t for t in b) for b in (TRAIN_DOUBLE, DEV_DOUBLE))
    model = at_rest(lambda m: mean_squared_error(m, one) + decay(m, 0.3), size=1)
    report = check_hypergradient(make(model, optimizer=None), one, dev)
    assert "not at a minimum" in report.position
