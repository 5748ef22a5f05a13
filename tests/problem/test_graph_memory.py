"""What an outer step keeps in memory, and for how long."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from reweight import SampleWeighter, wrap


class Once(torch.autograd.Function):
    """``x``; its gradient is made by :class:`Marked`, whose node keeps a mark alive."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return Marked.apply(grad)  # type: ignore[no-any-return]


class Marked(torch.autograd.Function):
    marks: list[weakref.ref[Any]] = []

    @staticmethod
    def forward(ctx: Any, grad: Tensor) -> Tensor:
        ctx.mark = torch.ones(1)
        Marked.marks.append(weakref.ref(ctx.mark))
        return grad.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad


def test_the_graph_of_the_inner_gradient_is_freed_before_the_weighters_backward_pass() -> None:
    alive = []

    class Looking(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
            alive.append(any(mark() is not None for mark in Marked.marks))
            return grad

    class Weighter(SampleWeighter):
        def __init__(self) -> None:
            super().__init__()
            self.level = nn.Parameter(torch.ones(()))

        def forward(self, losses: Tensor, inputs: Any) -> Tensor:
            return Looking.apply(self.level * torch.ones_like(losses))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    batch = torch.randn(6, 3), torch.randn(6)
    rw = wrap(
        model,
        Weighter(),
        lambda model, batch: (Once.apply(model(batch[0])).squeeze(-1) - batch[1]).square(),
        lambda model, batch: model(batch[0]).square().mean(),
    )
    rw.hypergradient(batch, batch)  # the first step compares second derivatives too
    Marked.marks.clear()
    alive.clear()
    rw.hypergradient(batch, batch)
    assert Marked.marks and alive and not any(alive)
