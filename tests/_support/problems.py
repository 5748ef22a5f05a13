"""Problems with a closed form, random matrices, and losses of a linear model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from reweight import SampleWeighter


class FreeWeights(SampleWeighter):
    """One weight per id, softplus(raw)/log 2: each parameter acts on its own weight only."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.zeros(size))

    def forward(self, losses: Tensor, inputs: Tensor) -> Tensor:
        return nn.functional.softplus(self.raw[inputs]) / math.log(2.0)


class SigmoidWeights(SampleWeighter):
    """Weights between 0 and 2 by the loss, which can run to a bound together."""

    bounds = (0.0, 2.0)

    def __init__(self, hidden: int = 100) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(1, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        nn.init.zeros_(self.mlp[2].weight)
        nn.init.zeros_(self.mlp[2].bias)

    def forward(self, losses: Tensor, inputs: Any = None) -> Tensor:
        weights: Tensor = 2.0 * self.mlp(losses.unsqueeze(-1)).squeeze(-1).sigmoid()
        return weights


def squared_errors(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch[:2]
    error: Tensor = (model(x).reshape(-1) - y).square()
    return error


def mean_squared_error(model: nn.Module, batch: Any) -> Tensor:
    return squared_errors(model, batch).mean()


@dataclass
class Ridge:
    """Weighted ridge regression at its minimum, one weight per sample.

    With rows ``a_i = [x_i, 1]`` and residuals ``r_i``, the inner gradient is
    ``2c Σ γ_i r_i a_i + Λθ`` with c = 1/B or 1, so that θ* = H⁻¹ 2c AᵀΓy, H = 2c AᵀΓA + Λ, and
    ``d outer/dγ_i = -2c r_i a_iᵀ (H + damping)⁻¹ v``.
    """

    model: nn.Linear
    weighter: FreeWeights
    train: tuple[Tensor, Tensor, Tensor]
    dev: tuple[Tensor, Tensor]
    hessian: Tensor  # with weight decay, without damping
    outer_gradient: Tensor
    influence: Tensor
    hypergradient: Tensor
    solution: Tensor


def ridge(
    *,
    reduction: Literal["mean", "sum"] = "mean",
    decay: tuple[float, float] = (0.0, 0.0),
    damping: float = 0.0,
    size: int = 8,
    dim: int = 3,
    seed: int = 0,
) -> Ridge:
    """The problem and its answer; ``decay`` of the weights and of the bias."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, y, raw = randn(size, dim), randn(size), randn(size)
    dev = randn(size, dim), randn(size)
    ones = torch.ones(size, 1, dtype=torch.float64)
    a, a_dev = torch.cat([x, ones], 1), torch.cat([dev[0], ones], 1)
    gamma = torch.log1p(raw.exp()) / math.log(2.0)
    c = 1.0 / size if reduction == "mean" else 1.0
    shift = torch.diag(torch.tensor([decay[0]] * dim + [decay[1]], dtype=torch.float64))
    hessian = 2.0 * c * a.T @ (gamma[:, None] * a) + shift
    theta = torch.linalg.solve(hessian, 2.0 * c * a.T @ (gamma * y))
    v = 2.0 / size * a_dev.T @ (a_dev @ theta - dev[1])
    u = torch.linalg.solve(hessian + damping * torch.eye(dim + 1, dtype=torch.float64), v)
    influence = -2.0 * c * (a @ theta - y) * (a @ u)

    model = nn.Linear(dim, 1, dtype=torch.float64)
    weighter = FreeWeights(size).double()
    with torch.no_grad():
        model.weight.copy_(theta[:-1])
        model.bias.copy_(theta[-1])
        weighter.raw.copy_(raw)
    return Ridge(
        model,
        weighter,
        (x, y, torch.arange(size)),
        dev,
        hessian,
        v,
        influence,
        influence * torch.sigmoid(raw) / math.log(2.0),
        u,
    )


def spd(seed: int, size: int, lowest: float = 0.2, highest: float = 2.0) -> tuple[Tensor, Tensor]:
    """A symmetric positive definite matrix with eigenvalues in the range, and a vector."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
    spread = torch.rand(size, generator=generator, dtype=torch.float64)
    eigenvalues = lowest + (highest - lowest) * spread
    b = torch.randn(size, generator=generator, dtype=torch.float64)
    return (basis * eigenvalues) @ basis.T, b


class Counted:
    """A matrix that counts its products and keeps what it was multiplied with."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix
        self.seen: list[Tensor] = []

    def __call__(self, v: Tensor) -> Tensor:
        self.seen.append(v)
        return self.matrix @ v
