"""The answer depends on the arguments alone: not on the mode, the context or what ran before."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from _support.problems import mean_squared_error, squared_errors
from _support.restless import (
    Averaging,
    assert_same,
    batches,
    every_mode,
    make,
    model,
    untouched,
    weighter,
)
from reweight import ImplicitHypergradient, Neumann


def test_an_outer_loss_that_switches_to_evaluation_switches_nothing_else() -> None:
    def evaluated(net: nn.Module, batch: Any) -> Tensor:
        net.eval()
        return mean_squared_error(net, batch)

    training = []

    def losses(net: nn.Module, batch: Any) -> Tensor:
        training.append(net.training)
        return squared_errors(net, batch)

    rw = make(losses=losses, outer_loss=evaluated)
    rw.hypergradient(*batches())
    assert training and all(training) and rw.model.training


@every_mode
def test_two_calls_give_the_same(hvp: str) -> None:
    rw = make(hvp=hvp)
    train, dev = batches()
    assert_same(rw.hypergradient(train, dev), rw.hypergradient(train, dev))


def test_every_mode_sees_the_same_dropout_mask_and_batch_statistics() -> None:
    train, dev = batches()
    torch.manual_seed(7)
    expected = make(hvp="autograd").hypergradient(train, dev)
    for hvp, atol in (("func", 1e-12), ("finite_difference", 1e-6)):
        torch.manual_seed(7)
        found = make(hvp=hvp).hypergradient(train, dev)
        assert found.info.hvp_mode == hvp
        torch.testing.assert_close(found.influence, expected.influence, rtol=0.0, atol=atol)


def test_no_grad_and_inference_mode_around_the_call_change_nothing() -> None:
    rw = make()
    train, dev = batches()
    expected = rw.hypergradient(train, dev)
    with torch.no_grad(), untouched(rw.model, rw.weighter):
        assert_same(rw.hypergradient(train, dev), expected)
    with torch.inference_mode():
        assert_same(rw.hypergradient(train, dev), expected)
    assert not expected.influence.requires_grad


def test_autocast_around_the_call_changes_nothing() -> None:
    rw = make(model().float(), weighter=weighter().float())
    train, dev = ((x.float(), y.float()) for x, y in batches())
    expected = rw.hypergradient(train, dev)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(rw.hypergradient(train, dev), expected)


def test_a_graph_from_before_can_still_be_differentiated() -> None:
    """The buffers it saved hold what they held, though they were written to and put back."""
    rw = make()
    train, dev = batches()
    torch.manual_seed(0)
    rw.loss(train).backward()
    expected = {n: p.grad for n, p in rw.model.named_parameters()}
    again = make()
    torch.manual_seed(0)
    loss = again.loss(train)
    again.hypergradient(train, dev)
    loss.backward()
    for name, parameter in again.model.named_parameters():
        if expected[name] is not None:
            assert torch.equal(parameter.grad, expected[name])


@every_mode
@pytest.mark.parametrize("fresh", [False, True])
def test_a_buffer_that_was_written_and_used_is_seen_as_it_was_then(hvp: str, fresh: bool) -> None:
    """A graph saved it, so no later pass may write to what was saved."""
    train, dev = batches()
    options: dict[str, Any] = {"batches": [batches(s)[0] for s in (5, 6, 7)]} if fresh else {}
    results = []
    for in_place in (True, False):
        torch.manual_seed(0)
        net = Averaging(in_place).double()
        rw = make(net, hypergradient=ImplicitHypergradient(Neumann(3, 0.01), hvp=hvp))  # type: ignore[arg-type]
        with untouched(net) if in_place else contextlib.nullcontext():
            results += [rw.hypergradient(train, dev, **options) for _ in range(2)]
    for other in results[1:]:
        torch.testing.assert_close(other.influence, results[0].influence, rtol=1e-12, atol=0.0)
