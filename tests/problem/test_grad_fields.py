"""Which gradients reach which parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from _support.problems import squared_errors
from _support.restless import assert_same, batches, make, untouched
from reweight import Losses, LossWeighter


def test_the_inner_loss_reaches_the_model_only() -> None:
    rw = make()
    train, _ = batches()
    rw.loss(train).backward()
    assert all(p.grad is None for p in rw.weighter.parameters())
    assert all(p.grad is not None for p in rw.model.parameters() if p.requires_grad)


def test_an_outer_backward_accumulates_the_hypergradient_and_reaches_the_weighter_only() -> None:
    rw = make()
    train, dev = batches()
    expected = rw.hypergradient(train, dev)
    assert_same(rw.outer_backward(train, dev), expected)
    named = dict(rw.weighter.named_parameters())
    assert all(torch.equal(named[n].grad, g) for n, g in expected.grads.items())
    rw.outer_backward(train, dev)
    assert all(torch.equal(named[n].grad, g + g) for n, g in expected.grads.items())
    assert all(p.grad is None for p in rw.model.parameters())


def test_gradients_made_in_inference_mode_can_be_used_outside() -> None:
    rw = make()
    train, dev = batches()
    optimizer = torch.optim.SGD(rw.weighter.parameters(), lr=0.1)
    with torch.inference_mode():
        rw.outer_backward(train, dev)
    rw.outer_backward(train, dev)
    optimizer.step()
    assert not any(p.grad.is_inference() for p in rw.weighter.parameters())


def test_the_result_does_not_share_memory_with_what_is_accumulated() -> None:
    rw = make()
    train, dev = batches()
    result = rw.outer_backward(train, dev)
    kept = {n: g.clone() for n, g in result.grads.items()}
    rw.outer_backward(train, dev)
    assert all(torch.equal(result.grads[n], g) for n, g in kept.items())


def test_weights_carry_no_gradient_and_leave_no_trace() -> None:
    rw = make()
    train, _ = batches()
    with untouched(rw.model, rw.weighter):
        weights = rw.weights(train)
    assert weights.shape == (6,) and not weights.requires_grad


def test_inputs_of_the_weighter_are_cut_off_from_the_model() -> None:
    """The weights depend on an embedding; no gradient flows there, in either problem."""
    seen: list[Any] = []

    class Watching(LossWeighter):
        def forward(self, losses: Tensor, inputs: Any = None) -> Tensor:
            seen.append((losses, inputs))
            return super().forward(losses, inputs)

    def losses(net: nn.Module, batch: Any) -> Losses:
        hidden = net.inner(batch[0])
        return Losses(squared_errors(net, batch), 0.0, {"hidden": (hidden, [hidden.mean()])})

    rw = make(weighter=Watching(4).double(), losses=losses)
    train, dev = batches()
    rw.loss(train)
    rw.hypergradient(train, dev)
    assert len(seen) == 2
    for given, inputs in seen:
        hidden, (mean,) = inputs["hidden"]
        assert not given.requires_grad and not hidden.requires_grad and not mean.requires_grad
