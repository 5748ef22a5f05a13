"""How often an outer step reads from the device: each read makes the host wait for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from reweight import (
    ConjugateGradient,
    Identity,
    ImplicitHypergradient,
    LossWeighter,
    Neumann,
    Reweighted,
    wrap,
)
from reweight._tensors import Pending, read

_READS = {
    Tensor.__bool__,
    Tensor.__float__,
    Tensor.__index__,
    Tensor.__int__,
    Tensor.allclose,
    Tensor.cpu,
    Tensor.equal,
    Tensor.item,
    Tensor.masked_select,
    Tensor.nonzero,
    Tensor.numpy,
    Tensor.tolist,
    Tensor.unique,
    torch.allclose,
    torch.equal,
    torch.masked_select,
    torch.nonzero,
    torch.unique,
}


class Reads(TorchFunctionMode):
    """Counts the calls that read values."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in _READS
        return func(*args, **(kwargs or {}))


def reads(call: Callable[[], Any]) -> int:
    with Reads() as counter:
        call()
    return counter.count


def wrapped(strategy: ImplicitHypergradient, model: nn.Module) -> tuple[Reweighted, Any, Any]:
    generator = torch.Generator().manual_seed(0)
    batch, dev = ((torch.randn(16, 4, generator=generator), torch.ones(16)) for _ in range(2))

    def losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return (model(batch[0]).squeeze(-1) - batch[1]).square()

    def outer(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return losses(model, batch).mean()

    rw = wrap(model, LossWeighter(), losses, outer, hypergradient=strategy)
    for _ in range(2):  # the first step also looks at the problem, and measures the residual
        rw.hypergradient(batch, dev)
    return rw, batch, dev


def plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def with_buffers() -> nn.Module:
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh()) for _ in range(3)]
    return nn.Sequential(*blocks, nn.Linear(4, 1))


def test_what_counts_as_a_read() -> None:
    x = torch.ones(3)
    assert reads(lambda: (bool(x[0]), float(x[1]), x.tolist(), torch.equal(x, x))) == 4
    assert reads(lambda: read(x, 2.0 * x)) == 1
    assert reads(lambda: x.sum() + x.max()) == 0


@pytest.mark.parametrize("model", [plain, with_buffers])
@pytest.mark.parametrize(
    ("strategy", "most"),
    [
        # The second read is for warnings of the weighter; differences read their step before.
        pytest.param(ImplicitHypergradient(Identity()), 2, id="forward"),
        pytest.param(ImplicitHypergradient(Identity(), hvp="differences"), 3, id="differences"),
        pytest.param(ImplicitHypergradient(Identity(), hvp="autograd"), 3, id="identity"),
        pytest.param(ImplicitHypergradient(Neumann(3)), 3, id="neumann-auto"),
        pytest.param(ImplicitHypergradient(Neumann(3, step_size=0.1)), 3, id="neumann-fixed"),
        # One for each stopping test, two at both ends of the solve, two for the residual, two more
        # where it is small: the curvature along it.
        pytest.param(
            ImplicitHypergradient(ConjugateGradient(4, rtol=1e-12), damping=1.0), 4 + 6, id="cg"
        ),
    ],
)
def test_an_outer_step_reads_seldom(
    strategy: ImplicitHypergradient, most: int, model: Callable[[], nn.Module]
) -> None:
    rw, batch, dev = wrapped(strategy, model())
    assert reads(lambda: rw.hypergradient(batch, dev)) <= most


def test_a_loss_reads_once() -> None:
    rw, batch, _ = wrapped(ImplicitHypergradient(), plain())
    assert reads(lambda: rw.loss(batch)) == 1


def test_pending_numbers_are_looked_at_in_order_and_once() -> None:
    pending, seen = Pending(), []
    pending.add(torch.tensor([1.0, 2.0]), seen.append)
    pending.add(torch.tensor([3.0], dtype=torch.float64), seen.append)
    assert pending.read(torch.tensor([4.0])) == [[4.0]]
    assert seen == [[1.0, 2.0], [3.0]]
    assert pending.read() == [] and len(seen) == 2
