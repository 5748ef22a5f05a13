"""A model that changes all that a forward pass can change, and a guard that all of it is undone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from _support.problems import mean_squared_error, squared_errors
from reweight import (
    ConjugateGradient,
    Hypergradient,
    ImplicitHypergradient,
    LossWeighter,
    Reweighted,
    wrap,
)

MODES = ("auto", "autograd", "func", "finite_difference")
every_mode = pytest.mark.parametrize("hvp", MODES)


class Restless(nn.Module):
    """Changes everything that a forward pass can change."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.out = nn.Linear(4, 1)
        self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("average", torch.zeros(4), persistent=False)
        self.register_buffer("later", None)
        self.cached: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        hidden = torch.dropout(self.norm(self.inner(x)), 0.3, self.training)
        self.average = 0.9 * self.average + hidden.detach().mean(0)
        self.later = hidden.detach().mean(0)
        self.cached = hidden
        if self.training:
            random.random()
            np.random.rand()
        return self.out(hidden) * self.frozen


def model(seed: int = 0) -> Restless:
    torch.manual_seed(seed)
    return Restless().double()


def weighter(seed: int = 1) -> LossWeighter:
    torch.manual_seed(seed)
    weighter = LossWeighter(4).double()
    nn.init.normal_(weighter.mlp[-1].weight)
    return weighter


def batches(seed: int = 2) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)

    def batch() -> tuple[Tensor, Tensor]:
        x = torch.randn(6, 3, generator=generator, dtype=torch.float64)
        return x, x.sum(1).sin()

    return batch(), batch()


def make(net: nn.Module | None = None, hvp: Any = "auto", **changes: Any) -> Reweighted:
    arguments: dict[str, Any] = {
        "model": net if net is not None else model(),
        "weighter": weighter(),
        "losses": squared_errors,
        "outer_loss": mean_squared_error,
        "hypergradient": ImplicitHypergradient(ConjugateGradient(8), damping=1.0, hvp=hvp),
        **changes,
    }
    return wrap(**arguments)


def same_state(module: nn.Module, before: dict[str, Tensor]) -> bool:
    now = dict(module.named_buffers())
    return now.keys() == before.keys() and all(torch.equal(now[n], t) for n, t in before.items())


@contextmanager
def untouched(*modules: nn.Module) -> Iterator[None]:
    """Fails if anything of the modules or of a random state is other than before."""
    before = [
        (
            module,
            {
                n: (p, p.detach().clone(), p._version, p.requires_grad)
                for n, p in parameters(module)
            },
            {
                n: (p.grad, None if p.grad is None else p.grad.clone())
                for n, p in parameters(module)
            },
            dict(module._buffers),
            {n: b.clone() for n, b in module.named_buffers()},
            {n: v for part in module.modules() for n, v in vars(part).items()},
        )
        for root in modules
        for module in root.modules()
    ]
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    numpy_state = np.random.get_state()[1].copy()  # type: ignore[union-attr]
    grad_enabled = torch.is_grad_enabled()
    yield
    for module, values, grads, slots, buffers, attributes in before:
        now = dict(parameters(module))
        assert now.keys() == values.keys()
        for name, (parameter, value, version, requires_grad) in values.items():
            assert now[name] is parameter
            assert torch.equal(parameter, value) and parameter._version == version
            assert parameter.requires_grad == requires_grad
            grad, kept = grads[name]
            assert parameter.grad is grad
            assert kept is None or torch.equal(grad, kept)
        assert module._buffers.keys() == slots.keys()
        assert all(module._buffers[n] is b for n, b in slots.items())
        assert same_state(module, buffers)
        after = {n: v for part in module.modules() for n, v in vars(part).items()}
        assert after.keys() == attributes.keys()
        assert all(after[n] is v for n, v in attributes.items())
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == python_state
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # type: ignore[index]
    assert torch.is_grad_enabled() == grad_enabled


def parameters(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return list(module.named_parameters())


def assert_same(one: Hypergradient, two: Hypergradient) -> None:
    assert torch.equal(one.influence, two.influence)
    assert one.grads.keys() == two.grads.keys()
    assert all(torch.equal(one.grads[n], two.grads[n]) for n in one.grads)
    assert one.info == two.info


class Averaging(nn.Module):
    """Uses a buffer in the pass that wrote to it, in place or anew."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.out = nn.Linear(3, 1)
        self.register_buffer("average", torch.ones(1).double())
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        if self.in_place:
            self.average.mul_(0.5).add_(2.0 + x.detach().mean())
        else:
            self.average = self.average * 0.5 + 2.0 + x.detach().mean()
        return self.out(x) * self.average
