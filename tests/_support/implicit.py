"""Hypergradients of weighted ridge regression by a strategy."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from _support.problems import Ridge, mean_squared_error, squared_errors
from reweight import ConjugateGradient, Hypergradient, ImplicitHypergradient, Losses, wrap

Tree = dict[str, Tensor]
EXACT = ConjugateGradient(max_steps=50, rtol=1e-14)


def losses(model: nn.Module, batch: Any) -> Losses:
    return Losses(squared_errors(model, batch), inputs=batch[2])


def hypergradient(
    problem: Ridge,
    strategy: ImplicitHypergradient,
    reduction: Literal["mean", "sum"] = "mean",
    optimizer: torch.optim.Optimizer | None = None,
) -> Hypergradient:
    rw = wrap(
        problem.model,
        problem.weighter,
        losses,
        mean_squared_error,
        optimizer,
        strategy,
        reduction=reduction,
    )
    return rw.hypergradient(problem.train, problem.dev)
