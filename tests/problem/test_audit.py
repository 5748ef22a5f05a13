"""The audit of second derivatives comes before their use, and sees what is used."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reweight import (
    ImplicitHypergradient,
    LossWeighter,
    Neumann,
    Reweighted,
    SecondMoments,
    Solution,
    Status,
    wrap,
)

Tree = dict[str, Tensor]


class TooSteep(torch.autograd.Function):
    """``x²`` whose second derivative is 10¹² times too large; the first one is right."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return grad * TooSteepFirst.apply(x)  # type: ignore[no-any-return]


class TooSteepFirst(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2.0 * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return 2e12 * grad


def data(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(6, 3, generator=generator), torch.randn(6, generator=generator)


def wrapped(
    model: nn.Module, square: Callable[[Tensor], Tensor], solver: Any = None, hvp: Any = "auto"
) -> Reweighted:
    def losses(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        return square(model(x).squeeze(-1) - y)

    return wrap(
        model,
        LossWeighter(hidden=4),
        losses,
        lambda model, batch: (model(batch[0]).squeeze(-1) - batch[1]).square().mean(),
        hypergradient=ImplicitHypergradient(solver or Neumann(3), hvp=hvp),
    )


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(3, 1)


@pytest.mark.filterwarnings("ignore:.*finite differences")
def test_a_wrong_mode_is_ruled_out_before_a_solve_can_fail_in_it() -> None:
    # The series diverges to infinity with the wrong products, and converges with the right ones.
    solver = Neumann(num_terms=6, step_size=0.1)
    found = wrapped(linear(), TooSteep.apply, solver).hypergradient(data(0), data(1))
    right = wrapped(linear(), torch.square, solver).hypergradient(data(0), data(1))
    assert found.info.hvp_mode == "finite_difference"
    # Differences of float32 gradients have three to four digits.
    torch.testing.assert_close(found.influence, right.influence, rtol=1e-2, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.*finite differences")
def test_a_solver_never_sees_products_of_a_mode_that_is_ruled_out() -> None:
    sizes = []

    def solver(matvec: Callable[[Tree], Tree], b: Tree) -> Solution:
        sizes.append(max(float(v.norm()) for v in matvec(b).values()))
        return Solution(b, Status.APPROXIMATED)

    wrapped(linear(), TooSteep.apply, solver).hypergradient(data(0), data(1))
    assert len(sizes) == 1 and sizes[0] < 1e3


def normed(train: bool) -> nn.Module:
    """``weight_norm``, whose second derivatives are wrong on the CPU, and buffers."""
    torch.manual_seed(0)
    first = nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))
    return nn.Sequential(first, nn.Tanh(), nn.BatchNorm1d(4).train(train), nn.Linear(4, 1))


@pytest.mark.filterwarnings("ignore:.*finite differences", "ignore:.*second derivatives")
@pytest.mark.parametrize("train", [True, False])
def test_mode_func_is_audited_for_a_model_with_buffers_too(train: bool) -> None:
    auto = wrapped(normed(train), torch.square).hypergradient(data(0), data(1))
    assert auto.info.hvp_mode == "finite_difference"
    forced = wrapped(normed(train), torch.square, hvp="func").hypergradient(data(0), data(1))
    assert "second derivatives" in forced.info.caveat


def test_no_tensor_of_a_transform_stays_in_the_model() -> None:
    seen = []

    class Watched(nn.BatchNorm1d):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(any(torch._C._functorch.is_functorch_wrapped_tensor(b) for b in held))
            return super().forward(x)

    model = nn.Sequential(nn.Linear(3, 4), Watched(4), nn.Linear(4, 1))
    held: list[Tensor] = []
    rw = wrapped(model, torch.square, hvp="func")
    original = rw.problem.audit.accepted

    def accepted(*args: Any, **kwargs: Any) -> Any:
        for one in original(*args, **kwargs):
            held[:] = [b for b in model.buffers() if b is not None]
            seen.append(any(torch._C._functorch.is_functorch_wrapped_tensor(b) for b in held))
            yield one

    rw.problem.audit.accepted = accepted  # type: ignore[method-assign]
    rw.hypergradient(data(0), data(1))
    assert seen and not any(seen)


def test_a_graph_is_freed_without_the_cyclic_collector() -> None:
    graphs: list[weakref.ref[Any]] = []

    class Marked(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.mark = torch.ones(1)
            graphs.append(weakref.ref(ctx.mark))
            return x * 1.0

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
            return grad

    model = linear()
    optimizer = torch.optim.Adam(model.parameters())
    rw = wrap(
        model,
        LossWeighter(hidden=4),
        lambda model, batch: (Marked.apply(model(batch[0])).squeeze(-1) - batch[1]).square(),
        lambda model, batch: model(batch[0]).square().mean(),
        optimizer=optimizer,
        hypergradient=ImplicitHypergradient(preconditioner=SecondMoments()),
    )
    rw.loss(data(0)).backward()
    optimizer.step()
    rw.hypergradient(data(0), data(1))
    graphs.clear()
    gc.collect()
    gc.disable()
    try:
        rw.hypergradient(data(0), data(1))
        assert graphs and not any(graph() is not None for graph in graphs)
    finally:
        gc.enable()
