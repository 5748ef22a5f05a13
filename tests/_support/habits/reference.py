"""The right answer, by plain gradients and dense linear algebra.

Nothing here uses the library's hypergradients. The inner variables are moved in place, as an
optimizer moves them, and the Hessian is made of central differences of gradients of ``backward()``.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from _support.habits.situation import Inner, Situation
from reweight import Losses

# In float64 the truncation error is of size STEP² = 1e-10, the rounding error 1e-16 / STEP = 1e-11.
STEP = 1e-5
# The smallest curvature of a system, relative to the largest, where the damping is chosen here: the
# errors above grow tenfold at most, and the Hessian still decides on the answer.
CONDITION = 0.1


@dataclass(frozen=True)
class Truth:
    """The right answer.

    Attributes:
        damping: of the system.
        loss: the inner loss.
        weights: ``[B]``.
        influence: ``[B]``.
        grads: the hypergradient, by the names of the weighter's parameters.
    """

    damping: float
    loss: float
    weights: Tensor
    influence: Tensor
    grads: dict[str, Tensor]


def seeded() -> None:
    """The random state in which the library and the reference start."""
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)


def reference(situation: Situation) -> Truth:
    """Solve the dense system of a situation."""
    if situation.later is not None:
        situation.later()
    inner = [v if isinstance(v, Inner) else Inner(v) for v in situation.inner]
    free = torch.cat([_mask(v).reshape(-1) for v in inner])
    decay = torch.cat([torch.full((v.tensor.numel(),), v.decay).double() for v in inner])

    def gradient(value: Callable[[], Tensor]) -> Tensor:
        loss = _fresh(situation, value)
        for v in inner:
            v.tensor.grad = None  # what losses that call backward() left
        loss.backward()
        return torch.cat([_grad(v.tensor) for v in inner])

    def losses() -> Losses:
        found = situation.losses(situation.model, situation.train)
        return found if isinstance(found, Losses) else Losses(found)

    here = _fresh(situation, losses)
    weights = situation.weighter(here.weighted.detach(), here.inputs)
    gamma = weights.detach()
    scale = 1.0 / len(gamma) if situation.reduction == "mean" else 1.0

    def inner_loss() -> Tensor:
        now = losses()
        # Where the number of losses depends on θ, the weights are those of the losses at θ.
        return scale * (gamma * now.weighted).sum() + torch.as_tensor(now.fixed).reshape(())

    def outer_loss() -> Tensor:
        return situation.outer_loss(situation.model, situation.dev)

    columns = [_column(inner, j, lambda: gradient(inner_loss)) for j in range(len(free))]
    hessian = torch.stack(columns)
    hessian = 0.5 * (hessian + hessian.T) + torch.diag(decay)
    kept = free.nonzero().flatten()
    system = hessian[kept][:, kept]
    damping = situation.damping
    if damping is None:
        damping = _damping(torch.linalg.eigvalsh(system))
    system = system + damping * torch.eye(len(kept), dtype=torch.float64)
    u = torch.linalg.solve(system, gradient(outer_loss)[kept])
    by_sample = torch.stack(
        [gradient(lambda i=i: losses().weighted[i])[kept] for i in range(len(gamma))]
    )
    influence = -scale * by_sample @ u
    phi = {n: p for n, p in situation.weighter.named_parameters() if p.requires_grad}
    through = torch.autograd.grad(
        weights, list(phi.values()), influence.to(weights.dtype), allow_unused=True
    )
    direct = torch.autograd.grad(
        _fresh(situation, outer_loss), list(phi.values()), allow_unused=True
    )
    grads = {
        name: sum((g for g in pair if g is not None), torch.zeros_like(p))
        for (name, p), pair in zip(phi.items(), zip(through, direct, strict=True), strict=True)
    }
    return Truth(damping, float(_fresh(situation, inner_loss).detach()), gamma, influence, grads)


def _damping(curvatures: Tensor) -> float:
    """What makes the smallest curvature a tenth of the largest, at least."""
    low, high = float(curvatures[0]), float(curvatures[-1])
    return max(0.1 * high, (CONDITION * high - low) / (1.0 - CONDITION), 0.1)


def _fresh(situation: Situation, value: Callable[[], Any]) -> Any:
    situation.refresh()
    seeded()
    return value()


def _mask(v: Inner) -> Tensor:
    return torch.ones(v.tensor.shape) if v.free is None else v.free.expand(v.tensor.shape)


def _grad(leaf: Tensor) -> Tensor:
    grad, leaf.grad = leaf.grad, None
    if grad is None:
        return torch.zeros(leaf.numel(), dtype=torch.float64)
    return (grad if grad.layout == torch.strided else grad.to_dense()).reshape(-1).double()


def _column(inner: list[Inner], j: int, gradient: Callable[[], Tensor]) -> Tensor:
    """Derivative of the gradient by the entry ``j`` of all variables."""
    for v in inner:
        if j < v.tensor.numel():
            break
        j -= v.tensor.numel()
    data = v.tensor.data
    before = data.clone()
    step = torch.zeros(data.numel(), dtype=data.dtype)
    step[j] = STEP
    step = step.view(data.shape)
    data.add_(step)
    ahead = gradient()
    data.copy_(before).sub_(step)
    behind = gradient()
    data.copy_(before)
    return (ahead - behind) / (2.0 * STEP)
