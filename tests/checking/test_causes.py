"""What is wrong with a set-up is named."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from _support.checking import DEV, NOT_COMPARED, SIZE, TRAIN, cross_entropies, make, network
from _support.problems import mean_squared_error, squared_errors
from reweight import Losses, LossWeighter, SampleWeighter, check_hypergradient


class SideChannel(SampleWeighter):
    """Reads the model behind the wrapper's back."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.5))
        self.hidden = [model]  # a list, so that its parameters are not this module's

    def forward(self, losses: Tensor, inputs: Any) -> Tensor:
        return torch.exp(self.slope * self.hidden[0].weight.sum()).expand(losses.shape)


def test_a_weighter_that_reads_the_model_by_a_side_channel_is_told() -> None:
    model = network()
    rw = make(model, weighter=SideChannel(model))
    report = check_hypergradient(rw, TRAIN, DEV)
    assert not report.ok and report.exact_error > 1e-3
    assert "SideChannel" in report.advice and "inputs=" in report.advice


def test_a_gradient_that_is_not_of_the_loss_is_told() -> None:
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return 2.0 * grad

    def outer(model: nn.Module, b: Any) -> Tensor:
        return Doubled.apply(mean_squared_error(model, b))  # type: ignore[no-any-return]

    report = check_hypergradient(make(outer_loss=outer), TRAIN, DEV)
    assert report.error == pytest.approx(1.0, rel=1e-3)
    assert "exact" in report.advice and "custom" in report.advice


def test_losses_of_another_model_raise_what_an_outer_step_raises() -> None:
    other = network()
    remembered = make(
        losses=lambda model, b: squared_errors(other, b),
        outer_loss=lambda model, b: mean_squared_error(other, b),
    )
    for ask in (remembered.hypergradient, partial(check_hypergradient, remembered)):
        with pytest.raises(ValueError, match="depend on any inner parameter"):
            ask(TRAIN, DEV)


def test_a_wrong_gradient_is_found_where_damping_is_needed_too() -> None:
    rw = make(optimizer=None, losses=cross_entropies, outer_loss=scaled(2.0))
    report = check_hypergradient(rw, TRAIN, DEV)
    assert not report.ok
    assert re.search(r"outer loss\b.*\b2\b", report.advice)


def test_what_a_perfect_fit_hides_is_looked_at_with_damping() -> None:
    few = tuple(t[:2] for t in TRAIN)
    right = check_hypergradient(make(decay=0.0), few, DEV)
    assert right.ok and right.damping == 0.0
    assert "damping" in right.advice and "exact" in right.advice
    wrong = check_hypergradient(make(decay=0.0, outer_loss=scaled(3.0)), few, DEV)
    assert not wrong.ok and wrong.damping > 0.0
    assert re.search(r"outer loss\b.*\b3\b", wrong.advice)


class Scaled(torch.autograd.Function):
    """Passes values through and multiplies gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.factor * grad, None


def scaled(factor: float) -> Callable[[nn.Module, Any], Tensor]:
    return lambda model, b: Scaled.apply(mean_squared_error(model, b), factor)  # type: ignore


@pytest.mark.parametrize(
    ("factor", "reasons"),
    [
        (2.0, {"twice"}),
        (0.5, {"half"}),
        (-1.0, {"reversal"}),
        (float(SIZE), {"mean", "sum", f"{SIZE} samples"}),
        (1.0 / SIZE, {"mean", "twice", f"{SIZE} samples"}),
        (3.0, set()),
    ],
)
def test_a_common_factor_is_named(factor: float, reasons: set[str]) -> None:
    report = check_hypergradient(make(outer_loss=scaled(factor)), TRAIN, DEV)
    assert not report.ok
    assert f"factor {factor:.3g}" in report.advice
    assert re.search(rf"outer loss\b.* {factor:.3g}\b", report.advice)
    words = ("twice", "half", "reversal", "mean", "sum", f"{SIZE} samples")
    assert {w for w in words if re.search(rf"\b{w}\b", report.advice)} == reasons


def test_a_wrong_gradient_of_the_weights_is_told() -> None:
    class Weighter(LossWeighter):
        def forward(self, losses: Tensor, inputs: Any) -> Tensor:
            weights: Tensor = Scaled.apply(super().forward(losses, inputs), 2.0)
            return weights

    torch.manual_seed(3)
    weighter = Weighter(4)
    nn.init.normal_(weighter.mlp[-1].weight, std=0.3)
    report = check_hypergradient(make(weighter=weighter), TRAIN, DEV)
    assert not report.ok and re.search(r"weights of Weighter\b.*\b2\b", report.advice)


def test_a_detach_inside_is_told() -> None:
    def outer(model: Any, b: Any) -> Tensor:
        return (b[0] @ model.weight[0] + model.bias.detach() - b[1]).square().mean()

    report = check_hypergradient(make(outer_loss=outer), TRAIN, DEV)
    assert not report.ok
    assert "outer loss" in report.advice and "detach()" in report.advice


def test_straight_through_gradients_are_told() -> None:
    """Where they vanish nothing is smallest, so there is nothing to compare with."""

    def rounded(model: nn.Module, b: Any) -> Tensor:
        predicted = model(b[0]).reshape(-1)
        steps = predicted + ((4.0 * predicted).round() / 4.0 - predicted).detach()
        return (steps - b[1]).square()

    def fixed(model: nn.Module, b: Any) -> Losses:
        return Losses(squared_errors(model, b), rounded(model, b).mean())

    for losses, what in ((rounded, "weight(s|ed)"), (fixed, "fixed")):
        report = check_hypergradient(make(losses=losses), TRAIN, DEV)
        assert not report.ok and NOT_COMPARED.search(report.verdict)
        assert re.search(rf"gradient of the .*\b{what}\b", report.advice)


def test_noise_of_ones_own_is_told() -> None:
    seeds = itertools.count()  # which nothing puts back

    def losses(model: nn.Module, b: Any) -> Tensor:
        generator = torch.Generator().manual_seed(next(seeds))
        return squared_errors(model, b) * (1.0 + 0.1 * torch.rand(SIZE, generator=generator))

    report = check_hypergradient(make(losses=losses), TRAIN, DEV)
    assert not report.ok
    assert re.search(r"weight(s|ed)\b.*every call", report.advice)


def test_wrong_second_derivatives_are_told() -> None:
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.square()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return 2.0 * ctx.saved_tensors[0].detach() * grad

    def losses(model: nn.Module, b: Any) -> Tensor:
        return Square.apply(model(b[0]).reshape(-1) - b[1])  # type: ignore[no-any-return]

    forced = check_hypergradient(make(network("mlp"), losses=losses, hvp="autograd"), TRAIN, DEV)
    assert not forced.ok
    assert re.search("second derivatives.*'autograd'", forced.advice)
    assert 'hvp="auto"' in forced.advice
    other = make(network("mlp"), losses=losses, hvp="finite_difference")
    assert check_hypergradient(other, TRAIN, DEV).ok
