"""A small set-up that the check agrees with, to be spoilt."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from _support.problems import mean_squared_error, squared_errors
from reweight import (
    ConjugateGradient,
    ImplicitHypergradient,
    Losses,
    LossWeighter,
    Reweighted,
    wrap,
)

SIZE = 8
EXACT = ConjugateGradient(max_steps=100, rtol=1e-10)
NOT_COMPARED = re.compile("not be compared", re.IGNORECASE)


def batch(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(SIZE, 3, generator=generator)
    return x, torch.randn(SIZE, generator=generator), torch.arange(SIZE)


TRAIN, DEV = batch(0), batch(1)


def trained_weighter() -> LossWeighter:
    torch.manual_seed(3)
    weighter = LossWeighter(4)
    nn.init.normal_(weighter.mlp[-1].weight, std=0.3)
    return weighter


def network(kind: str = "linear") -> nn.Module:
    torch.manual_seed(0)
    if kind == "linear":
        return nn.Linear(3, 1)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def make(
    model: nn.Module | None = None,
    solver: Any = EXACT,
    decay: float = 0.2,
    damping: float = 0.0,
    hvp: Any = "auto",
    **changes: Any,
) -> Reweighted:
    model = network() if model is None else model
    arguments: dict[str, Any] = {
        "model": model,
        "weighter": trained_weighter(),
        "losses": squared_errors,
        "outer_loss": mean_squared_error,
        "optimizer": torch.optim.AdamW(model.parameters(), weight_decay=decay),
        "hypergradient": ImplicitHypergradient(solver, damping, hvp),
        **changes,
    }
    return wrap(**arguments)


def absolute_errors(model: nn.Module, b: Any) -> Tensor:
    return (model(b[0]).reshape(-1) - b[1]).abs()


def cross_entropies(model: nn.Module, b: Any) -> Tensor:
    labels = (b[1] > 0).to(b[1])
    return nn.functional.binary_cross_entropy_with_logits(
        model(b[0]).reshape(-1), labels, reduction="none"
    )


def at_rest(loss: Callable[[nn.Module], Tensor], size: int = 3) -> nn.Module:
    """A linear model where a smooth loss is smallest."""
    torch.manual_seed(0)
    model = nn.Linear(size, 1, dtype=torch.float64)
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(model)
        value.backward()
        return value

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    optimizer.zero_grad()
    return model


def with_ids(model: nn.Module, b: Any) -> Losses:
    return Losses(squared_errors(model, b), inputs=b[2])
