"""First-order steps on the catalogue's problems, and what they are by dense linear algebra."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.catalogue.problems import Bilevel
from reweight import (
    Hypergradient,
    Identity,
    ImplicitHypergradient,
    Losses,
    SampleWeighter,
    wrap,
)

# What every problem is tried with: the way, and a diagonal preconditioner or not.
STEPS: dict[str, tuple[Any, bool]] = {
    "Identity(), forward": ("forward", False),
    "Identity(), differences": ("differences", False),
    "Identity(), forward, preconditioned": ("forward", True),
    "Identity(), differences, preconditioned": ("differences", True),
}


class _Values(nn.Module):
    def __init__(self, problem: Bilevel) -> None:
        super().__init__()
        for name, value in problem.params.items():
            self.register_parameter(name, nn.Parameter(value.clone()))


class _Weights(SampleWeighter):
    """A weight of its own for each loss."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights.clone())

    def forward(self, losses: Tensor, inputs: Any) -> Tensor:
        return self.weights


def hypergradient(problem: Bilevel, name: str) -> tuple[Hypergradient, Tensor]:
    """A first-order step, and the same by dense linear algebra: ``−(∂²inner/∂w∂θ)ᵀ D v``.

    The weights are the hyperparameters in which the inner loss is linear, each with a loss of its
    own.
    """
    way, preconditioned = STEPS[name]
    key = "weights" if "weights" in problem.hparams else "h"
    weights = problem.hparams[key]

    def inner(params: dict[str, Tensor], weights: Tensor) -> Tensor:
        return problem.inner(params, {**problem.hparams, key: weights})

    def losses(model: Any, batch: Any) -> Losses:
        params = dict(model.named_parameters())
        fixed = inner(params, torch.zeros_like(weights))
        units = torch.eye(len(weights), dtype=weights.dtype)
        return Losses(torch.stack([inner(params, unit) - fixed for unit in units]), fixed)

    diagonal = problem.hessian().diagonal().abs().clamp_min(1e-3).reciprocal()
    scaled = problem.parted(diagonal, problem.params) if preconditioned else None
    rw = wrap(
        _Values(problem),
        _Weights(weights),
        losses,
        lambda model, batch: problem.outer(dict(model.named_parameters()), problem.hparams),
        hypergradient=ImplicitHypergradient(Identity(), hvp=way, preconditioner=scaled),
        reduction="sum",
    )
    found = rw.hypergradient(torch.zeros(0), torch.zeros(0))

    theta = problem.joined(problem.params)
    v = torch.func.grad(lambda t: problem.outer(problem.parted(t, problem.params), problem.hparams))
    mixed = torch.func.jacrev(
        torch.func.grad(lambda t, w: inner(problem.parted(t, problem.params), w)), argnums=1
    )(theta, weights)
    step = v(theta) * diagonal if preconditioned else v(theta)
    return found, -(mixed.T @ step)
