"""An outer step on micro-batches is the outer step on one batch of all their samples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reweight
from _support.processes import Processes, values
from reweight._problem import MicroBatches, rows_of
from reweight.integrations._micro_batches import over_micro_batches

SIZES = (3, 5)


def losses(model: nn.Module, batch: Any) -> reweight.Losses:
    x, y, group = batch
    penalty = 0.1 * sum(p.square().sum() for p in model.parameters())
    output = model(x).squeeze(-1)
    fixed = penalty + 0.3 * (output - 1).square().mean()
    inputs = {"group": group, "x": (x, group)}
    return reweight.Losses((output - y).square(), fixed=fixed, inputs=inputs)


def of_outputs(model: nn.Module, batch: Any) -> reweight.Losses:
    """The same without a fixed part, in the form that Gauss-Newton products need."""
    x, y, group = batch
    inputs = {"group": group, "x": (x, group)}
    return reweight.Losses.of(model(x), lambda out: (out.squeeze(-1) - y).square(), inputs=inputs)


class ByGroup(reweight.SampleWeighter):
    """A weight for each group, which also looks at the features."""

    def __init__(self) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.ones(2, dtype=torch.float64))

    def forward(self, losses: Tensor, inputs: Any) -> Tensor:
        assert inputs["x"][0].shape == (len(losses), 3) and inputs["x"][1] is inputs["group"]
        return self.raw[inputs["group"]] * (1 + inputs["x"][0].square().sum(1))


def batch(n: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    return x, x.sum(1).sin(), torch.arange(n) % 2


@pytest.mark.parametrize(
    ("losses", "curvature"), [(losses, "hessian"), (of_outputs, "gauss_newton")]
)
def test_micro_batches_are_one_batch_of_their_samples(losses: Any, curvature: Any) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 1).double()
    solver = reweight.ImplicitHypergradient(
        reweight.ConjugateGradient(20, rtol=1e-12), damping=0.1, curvature=curvature
    )
    rw = reweight.wrap(
        model,
        ByGroup(),
        over_micro_batches(losses, model),
        lambda model, batch: losses(model, batch).weighted.mean(),
        hypergradient=solver,
    )
    parts = [batch(n, n) for n in SIZES]
    whole = tuple(torch.cat(each) for each in zip(*parts, strict=True))
    split, joined = rw.hypergradient(MicroBatches(parts), whole), rw.hypergradient(whole, whole)
    # The same formula with sums in another order, through a solve of condition below 100.
    assert torch.allclose(split.influence, joined.influence, rtol=1e-11)
    assert torch.allclose(split.grads["raw"], joined.grads["raw"], rtol=1e-11)
    assert torch.equal(rw.weights(MicroBatches(parts)), rw.weights(whole))


def test_the_rows_of_micro_batches_are_those_of_one_batch() -> None:
    parts = [batch(n, n) for n in SIZES]
    whole = tuple(torch.cat(each) for each in zip(*parts, strict=True))
    assert rows_of(MicroBatches(parts)) == rows_of(whole) == (sum(SIZES), 3 * sum(SIZES))


def outer_step(rank: int, size: int) -> list[Tensor]:
    """The hypergradient and the influences on all micro-batches, or on those of this process."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1).double()
    rw = reweight.wrap(
        model,
        ByGroup(),
        over_micro_batches(losses, model),
        lambda model, batch: losses(model, batch).weighted.mean(),
    )
    parts = [batch(n, n) for n in (3, 5, 2)]
    own = parts if size == 1 else [parts[:2], parts[2:]][rank]
    found = rw.hypergradient(MicroBatches(own), batch(6, 0))
    return [found.grads["raw"], found.influence]


@pytest.mark.slow
def test_micro_batches_of_two_processes_are_those_of_one(two: Processes) -> None:
    found = values(two.run(outer_step))
    grad, influence = outer_step(0, 1)
    # Sums of ten terms in another order.
    for each in found:
        torch.testing.assert_close(each[0], grad, rtol=1e-12, atol=1e-12)
    joined = torch.cat([each[1] for each in found])
    torch.testing.assert_close(joined, influence, rtol=1e-12, atol=1e-12)


def test_inputs_without_a_row_per_sample_are_refused() -> None:
    def shared(model: nn.Module, batch: Any) -> reweight.Losses:
        return reweight.Losses(losses(model, batch).weighted, inputs=torch.tensor(0.5))

    grouped = over_micro_batches(shared, None)
    with pytest.raises(ValueError, match=r"inputs have shapes \[\(\)\]"):
        grouped(nn.Linear(3, 1).double(), MicroBatches([batch(3, 0), batch(3, 1)]))


def test_a_model_without_losses_is_refused() -> None:
    with pytest.raises(TypeError, match=r"losses is missing and Linear has no method losses"):
        over_micro_batches(None, nn.Linear(1, 1))
