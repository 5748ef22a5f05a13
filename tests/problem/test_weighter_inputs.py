"""Weighters get their inputs in whatever container the losses put them, and without a graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reweight
from _support.containers import KINDS

DIM = 3


class Reading(reweight.SampleWeighter):
    """It reads a tensor ``[B, D]`` in some container."""

    def __init__(self, read: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(DIM, 1, dtype=torch.float64)
        self.read = read

    def forward(self, losses: Tensor, inputs: Any) -> Tensor:
        x = self.read(inputs)[0]
        assert not x.requires_grad
        return 2.0 * self.linear(x).squeeze(-1).sigmoid()


def wrapped(make: Any, read: Any) -> tuple[Any, Any]:
    """A problem whose weighter reads what depends on the model, and a batch."""
    torch.manual_seed(0)
    model = nn.Linear(DIM, DIM, dtype=torch.float64)

    def losses(model: nn.Module, batch: Any) -> reweight.Losses:
        hidden = model(batch[0])
        return reweight.Losses((hidden.sum(1) - batch[1]).square(), inputs=make(hidden))

    def outer_loss(model: nn.Module, batch: Any) -> Tensor:
        return (model(batch[0]).sum(1) - batch[1]).square().mean()

    rw = reweight.wrap(model, Reading(read), losses, outer_loss)
    return rw, (torch.randn(5, DIM, dtype=torch.float64), torch.randn(5, dtype=torch.float64))


@pytest.mark.parametrize("kind", KINDS)
def test_the_container_changes_nothing(kind: str) -> None:
    if kind == "packed sequence":
        pytest.skip("it puts rows in another order")
    rw, batch = wrapped(*KINDS[kind])
    expected, _ = wrapped(lambda x: x, lambda x: [x])
    for problem in (rw, expected):
        problem.loss(batch).backward()
    # The same operations in the same order.
    assert torch.equal(rw.model.weight.grad, expected.model.weight.grad)
    assert rw.weighter.linear.weight.grad is None
    assert torch.equal(rw.weights(batch), expected.weights(batch))
    found, right = rw.hypergradient(batch, batch), expected.hypergradient(batch, batch)
    assert torch.equal(found.influence, right.influence)
    assert all(torch.equal(found.grads[name], right.grads[name]) for name in right.grads)


class Owner:
    """It gives back something when it goes, so that there can't be two of it."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __del__(self) -> None:
        pass


def test_inputs_that_can_not_be_detached_are_refused() -> None:
    rw, batch = wrapped(lambda x: {"rows": [Owner(x)]}, lambda v: [v["rows"][0].x])
    with pytest.raises(ValueError, match=r"losses\.inputs .* Owner .* Detach .* Reading reads"):
        rw.loss(batch)
    # Nothing is wrong with one whose tensors have no graph.
    rw, _ = wrapped(lambda x: {"rows": [Owner(x.detach())]}, lambda v: [v["rows"][0].x])
    rw.loss(batch).backward()
    assert bool(rw.weights(batch).isfinite().all())
