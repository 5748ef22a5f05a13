"""Gradient hooks are tried on made-up gradients, which leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from _support.problems import squared_errors
from _support.restless import assert_same
from reweight import ImplicitHypergradient, LossWeighter, Reweighted, wrap
from reweight.verdict import Comparison


def wrapped(model: nn.Module) -> Reweighted:
    torch.manual_seed(1)
    return wrap(
        model,
        LossWeighter().double(),
        squared_errors,
        outer_loss=lambda net, batch: squared_errors(net, batch).mean(),
        hypergradient=ImplicitHypergradient(verdict_every=1),
    )


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, 1, bias=False).double()


def data(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(8, 4, generator=generator, dtype=torch.float64)
    return x, x.sum(1).sin()


TRAIN, DEV = data(0), data(1)


def consumed(p: Tensor) -> None:
    p.data.add_(p.grad, alpha=-0.1)  # type: ignore[arg-type]
    p.grad = None


def replaced(p: Tensor) -> None:
    p.data = p.data - 0.1 * p.grad  # type: ignore[operator]


@pytest.mark.parametrize("step", [consumed, replaced])
def test_a_step_of_gradient_descent_in_a_hook_is_not_taken(step: Callable[[Tensor], None]) -> None:
    """A step in the backward pass, by hand: it is neither a mask nor another place."""
    model = linear()
    expected = wrapped(model).hypergradient(TRAIN, DEV)
    before = model.weight.detach().clone()
    model.weight.register_post_accumulate_grad_hook(step)
    found = wrapped(model).hypergradient(TRAIN, DEV)
    assert_same(found, expected)
    assert not found.info.caveat
    assert torch.equal(model.weight, before)


def test_a_hook_that_took_the_place_of_another_is_looked_at() -> None:
    model = linear()
    rw = wrapped(model)

    def without(column: int) -> Callable[[Tensor], Tensor]:
        kept = (torch.arange(4) != column).double()
        return lambda grad: grad * kept

    handle = model.weight.register_hook(without(0))
    rw.hypergradient(TRAIN, DEV)
    handle.remove()
    model.weight.register_hook(without(3))
    assert_same(rw.hypergradient(TRAIN, DEV), wrapped(model).hypergradient(TRAIN, DEV))


def test_norms_of_made_up_gradients_are_not_recorded() -> None:
    model = linear()
    norms: list[float] = []
    model.weight.register_hook(lambda grad: norms.append(float(grad.norm())))
    wrapped(model).hypergradient(TRAIN, DEV)
    assert norms == []


def test_a_mask_that_changes_in_place_is_seen() -> None:
    """As where more and more weights are pruned."""
    model, kept = linear(), torch.ones(4, dtype=torch.float64)
    model.weight.register_hook(lambda grad: grad * kept)
    rw = wrapped(model)
    rw.hypergradient(TRAIN, DEV)
    kept[2] = 0.0
    assert_same(rw.hypergradient(TRAIN, DEV), wrapped(model).hypergradient(TRAIN, DEV))


def test_a_new_hook_is_no_reason_to_compare_second_derivatives() -> None:
    model = linear()
    rw = wrapped(model)
    for age in range(4):
        handle = model.weight.register_hook(lambda grad: grad.clamp(-1.0, 1.0))
        assert rw.hypergradient(TRAIN, DEV).info.comparison == Comparison(age)
        handle.remove()
