"""Outer steps that are compiled by a backend that takes a second, not a minute."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from reweight import (
    Hypergradient,
    ImplicitHypergradient,
    Losses,
    LossWeighter,
    Reweighted,
    wrap,
)


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Have the library compile with this backend of ``torch.compile``."""
    with mock.patch.object(torch, "compile", functools.partial(torch.compile, backend=name)):
        yield


def randn(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def batches(size: int, seed: int) -> tuple[Any, Any]:
    """A train batch and a dev batch for a model of three features."""
    train = randn(size, 3, seed=seed), randn(size, seed=seed + 1)
    return train, (randn(5, 3, seed=seed + 2), randn(5, seed=seed + 3))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1)).double()


def squares(model: nn.Module, batch: Any) -> Losses:
    x, y = batch
    error = (model(x).reshape(-1) - y).square()
    penalty = sum((0.01 * p.square().sum() for p in model.parameters()), torch.zeros(()).double())
    return Losses(error, fixed=penalty + error[:2].mean(), inputs={"x": x, "y": [y]})


def mean_error(model: nn.Module, batch: Any) -> Tensor:
    return squares(model, batch).weighted.mean()


def weighter() -> LossWeighter:
    torch.manual_seed(1)
    weighter = LossWeighter(4).double()
    nn.init.normal_(weighter.mlp[-1].weight)
    return weighter


def pair(
    solver: Any, model: nn.Module | None = None, *, strategy: Any = None, **changes: Any
) -> tuple[Reweighted, Reweighted]:
    """The same problem wrapped twice, to be compiled and eager."""
    model = network() if model is None else model
    options = {"solver": solver, "damping": 0.1, **(strategy or {})}
    arguments: dict[str, Any] = {
        "model": model,
        "weighter": weighter(),
        "losses": squares,
        "outer_loss": mean_error,
        **changes,
    }
    one, two = (
        wrap(**arguments, hypergradient=ImplicitHypergradient(**options, compile=compile))
        for compile in (True, False)
    )
    return one, two


def is_compiled(found: Hypergradient) -> bool:
    return "compiled" in found.info.detail


def assert_same(found: Hypergradient, expected: Hypergradient) -> None:
    # Both are float64 and differ by the order of operations, in sums of fewer than 100 terms.
    close = functools.partial(torch.testing.assert_close, rtol=1e-9, atol=1e-12)
    close(found.influence, expected.influence)
    for name, grad in expected.grads.items():
        close(found.grads[name], grad)
    assert found.info.status is expected.info.status
    assert found.info.num_hvps == expected.info.num_hvps


def steps(rw: Reweighted, pairs: list[tuple[Any, Any]]) -> tuple[list[Hypergradient], list[str]]:
    """The results of outer steps, and what was warned."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = [rw.hypergradient(*each) for each in pairs]
    return found, [str(each.message) for each in caught]
