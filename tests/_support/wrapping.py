"""A linear model wrapped, with everything open to change."""

from __future__ import annotations

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
    SampleWeighter,
    wrap,
)

SIZE = 6
DAMPING = 60.0  # makes every small network below positive definite
EXACT = ConjugateGradient(max_steps=200, rtol=1e-13)


def randn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def weighter() -> LossWeighter:
    torch.manual_seed(1)
    weighter = LossWeighter(4).double()
    nn.init.normal_(weighter.mlp[-1].weight)
    return weighter


def make(model: nn.Module | None = None, **changes: Any) -> Reweighted:
    """Squared errors of a linear model, unless something is changed."""
    arguments: dict[str, Any] = {
        "model": model if model is not None else nn.Linear(3, 1).double(),
        "weighter": weighter(),
        "losses": squared_errors,
        "outer_loss": mean_squared_error,
        "hypergradient": ImplicitHypergradient(EXACT, damping=DAMPING),
        **changes,
    }
    return wrap(**arguments)


TRAIN, DEV = (randn(SIZE, 3), randn(SIZE, seed=1)), (randn(SIZE, 3, seed=2), randn(SIZE, seed=3))


class Borrower(SampleWeighter):
    """Holds a part of the model, and a scale of its own."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, losses: Tensor, inputs: Any) -> Tensor:
        return torch.exp(self.scale * self.part(inputs).mean(1).detach())


def shared() -> tuple[nn.Module, Reweighted]:
    torch.manual_seed(0)
    part = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).double()
    rw = make(
        nn.Sequential(part, nn.Linear(3, 1).double()),
        weighter=Borrower(part),
        losses=lambda m, b: Losses(squared_errors(m, b), inputs=b[0]),
        inner_params=lambda name: name.startswith("1."),
    )
    return part, rw
