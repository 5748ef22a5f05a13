"""How many forward and backward passes of a model a step takes, by the operations of its matrix
products, which are the same on every machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from reweight import ImplicitHypergradient, Losses, LossWeighter, Neumann, SampleSpace, wrap

SIZE, FEATURES, WIDTH = 16, 16, 256


def operations(call: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Losses:
    x, y = batch
    return Losses.of(
        model(x),
        lambda out: F.binary_cross_entropy_with_logits(out.squeeze(1), y, reduction="none"),
    )


@pytest.mark.parametrize(
    ("solver", "damping", "most"),
    [
        # Two for the gradients, four thirds a product, and two thirds for the influences.
        (Neumann(3, step_size=0.1), 0.0, 7.0),
        # One output per sample: one pass for all layers' signals, then products of activations.
        (SampleSpace(), 10.0, 3.5),
        # And one step of refinement, which float32 needs where damping is small.
        (SampleSpace(), 1e-2, 4.2),
    ],
    ids=["neumann", "sample space", "sample space, refined"],
)
def test_a_step_takes_few_forward_and_backward_passes(
    solver: Any, damping: float, most: float
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(FEATURES, WIDTH),
        nn.Tanh(),
        nn.Linear(WIDTH, WIDTH),
        nn.Tanh(),
        nn.Linear(WIDTH, 1),
    )
    batch, dev_batch = (
        (torch.randn(SIZE, FEATURES), torch.randint(2, (SIZE,)).float()) for _ in range(2)
    )
    strategy = ImplicitHypergradient(solver, damping, curvature="gauss_newton", verdict_every=1000)
    rw = wrap(
        model,
        LossWeighter(2),
        losses,
        lambda model, batch: losses(model, batch).weighted.mean(),
        hypergradient=strategy,
    )
    rw.hypergradient(batch, dev_batch)  # looks at the problem, and measures the residual
    passes = operations(lambda: losses(model, batch).weighted.mean().backward())
    step = operations(lambda: rw.hypergradient(batch, dev_batch))
    assert step <= most * passes
