"""Bilevel problems with a known answer: hypergradients by dense linear algebra."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

Tree = dict[str, Tensor]


def relative_error(x: Tensor, y: Tensor) -> float:
    """The distance of ``x`` from ``y``, as a share of the size of ``y``."""
    return float((x - y).norm() / y.norm())


@dataclass(frozen=True)
class Bilevel:
    """An inner problem at its solution, and its hypergradient by dense linear algebra.

    Written for the functional core: ``inner`` and ``outer`` take dicts of tensors.
    """

    inner: Callable[[Tree, Tree], Tensor]
    outer: Callable[[Tree, Tree], Tensor]
    params: Tree
    hparams: Tree
    damping: float = 0.0

    def joined(self, params: Tree) -> Tensor:
        return torch.cat([p.reshape(-1) for p in params.values()])

    def parted(self, flat: Tensor, like: Tree) -> Tree:
        parts = flat.split([p.numel() for p in like.values()])
        return {n: part.view_as(p) for part, (n, p) in zip(parts, like.items(), strict=True)}

    def hessian(self) -> Tensor:
        """With damping."""

        def objective(flat: Tensor) -> Tensor:
            return self.inner(self.parted(flat, self.params), self.hparams)

        hessian = torch.func.hessian(objective)(self.joined(self.params))
        return hessian + self.damping * torch.eye(len(hessian), dtype=hessian.dtype)

    def oracle(self) -> Tree:
        """``∂outer/∂φ − (∂²inner/∂φ∂θ)ᵀ (H + damping)⁻¹ ∂outer/∂θ``."""
        theta, phi = self.joined(self.params), self.joined(self.hparams)

        def split(fn: Callable[[Tree, Tree], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
            return lambda t, f: fn(self.parted(t, self.params), self.parted(f, self.hparams))

        inner, outer = split(self.inner), split(self.outer)
        v = torch.func.grad(outer)(theta, phi)
        mixed = torch.func.jacrev(torch.func.grad(inner), argnums=1)(theta, phi)
        direct = torch.func.grad(outer, argnums=1)(theta, phi)
        return self.parted(direct - mixed.T @ torch.linalg.solve(self.hessian(), v), self.hparams)

    def error(self, grads: Tree) -> float:
        """Relative; infinite where the Hessian is singular, so that no answer exists."""
        sizes = torch.linalg.eigvalsh(self.hessian()).abs()
        if float(sizes.min()) < 1e-12 * float(sizes.max()):
            return math.inf
        return relative_error(self.joined(grads), self.joined(self.oracle()))


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=_generator(seed), dtype=torch.float64)


def quadratic(eigenvalues: Tensor, damping: float = 0.0, seed: int = 0) -> Bilevel:
    """``½ θᵀAθ − φᵀθ`` with these curvatures; the hypergradient is ``A⁻¹ ∂outer/∂θ``.

    θ is made of two tensors, and is not at the minimum: the matrix is the same everywhere.
    """
    size = len(eigenvalues)
    basis = torch.linalg.qr(_randn(size, size, seed=seed)).Q
    matrix = (basis * eigenvalues) @ basis.T
    target = _randn(size, seed=seed + 1)

    def flat(params: Tree) -> Tensor:
        return torch.cat([params["a"].reshape(-1), params["b"]])

    def inner(params: Tree, hparams: Tree) -> Tensor:
        theta = flat(params)
        return 0.5 * theta @ matrix @ theta - hparams["h"] @ theta

    def outer(params: Tree, hparams: Tree) -> Tensor:
        return 0.5 * (flat(params) - target).square().sum()

    start = _randn(size, seed=seed + 2)
    params = {"a": start[:4].view(2, 2), "b": start[4:]}
    return Bilevel(inner, outer, params, {"h": _randn(size, seed=seed + 3)}, damping)


def _solved(problem: Bilevel, steps: int = 50) -> Bilevel:
    """The same with ``params`` at a minimum, by Newton steps on a dense Hessian."""

    def objective(flat: Tensor) -> Tensor:
        return problem.inner(problem.parted(flat, problem.params), problem.hparams)

    theta = problem.joined(problem.params)
    gradient, hessian = torch.func.grad(objective), torch.func.hessian(objective)
    for _ in range(steps):
        curvature, slope = hessian(theta), gradient(theta)
        lowest = float(torch.linalg.eigvalsh(curvature)[0])
        shift = max(0.0, 0.01 - 2.0 * lowest) if lowest < 1e-6 else 0.0
        step = torch.linalg.solve(curvature + shift * torch.eye(len(theta)).double(), slope)
        length, before = 1.0, float(objective(theta))
        while float(objective(theta - length * step)) > before and length > 1e-8:
            length /= 2.0
        theta = theta - length * step
    assert float(gradient(theta).norm()) < 1e-10
    return replace(problem, params=problem.parted(theta, problem.params))


def classification(num_classes: int, penalty: float = 1e-2, seed: int = 0) -> Bilevel:
    """Logistic (two classes) or softmax regression with L2 and a weight per sample."""
    size, dim = 30, 4
    x, x_dev = _randn(size, dim, seed=seed), _randn(size, dim, seed=seed + 1)
    teacher = _randn(dim, num_classes, seed=seed + 2)

    def labels(x: Tensor, seed: int) -> Tensor:
        return (x @ teacher + _randn(size, num_classes, seed=seed)).argmax(1)

    y, y_dev = labels(x, seed + 3), labels(x_dev, seed + 4)
    columns = 1 if num_classes == 2 else num_classes

    def losses(params: Tree, x: Tensor, y: Tensor) -> Tensor:
        logits = x @ params["weight"] + params["bias"]
        if num_classes == 2:
            return F.binary_cross_entropy_with_logits(logits[:, 0], y.double(), reduction="none")
        return F.cross_entropy(logits, y, reduction="none")

    def inner(params: Tree, hparams: Tree) -> Tensor:
        decay = sum(p.square().sum() for p in params.values())
        return (hparams["weights"] * losses(params, x, y)).mean() + 0.5 * penalty * decay

    def outer(params: Tree, hparams: Tree) -> Tensor:
        return losses(params, x_dev, y_dev).mean()

    params = {
        "weight": torch.zeros(dim, columns, dtype=torch.float64),
        "bias": torch.zeros(columns, dtype=torch.float64),
    }
    weights = torch.rand(size, generator=_generator(seed + 5), dtype=torch.float64) + 0.5
    return _solved(Bilevel(inner, outer, params, {"weights": weights}))


def network(penalty: float = 1e-2, solved: bool = True, seed: int = 0) -> Bilevel:
    """A two-layer network with tanh, a weight per sample and a learned L2 penalty."""
    size, dim, hidden = 20, 3, 4
    x, x_dev = _randn(size, dim, seed=seed), _randn(size, dim, seed=seed + 1)

    def target(x: Tensor) -> Tensor:
        return torch.sin(x.sum(1))

    def losses(params: Tree, x: Tensor) -> Tensor:
        inside = torch.tanh(x @ params["w1"] + params["b1"])
        return (inside @ params["w2"] + params["b2"] - target(x)).square()

    def inner(params: Tree, hparams: Tree) -> Tensor:
        decay = hparams["log_penalty"].exp() * sum(p.square().sum() for p in params.values())
        return (hparams["weights"] * losses(params, x)).mean() + 0.5 * decay

    def outer(params: Tree, hparams: Tree) -> Tensor:
        return losses(params, x_dev).mean()

    params = {
        "w1": _randn(dim, hidden, seed=seed + 2),
        "b1": _randn(hidden, seed=seed + 3),
        "w2": _randn(hidden, seed=seed + 4),
        "b2": _randn(seed=seed + 5),
    }
    hparams = {
        "weights": torch.rand(size, generator=_generator(seed + 6), dtype=torch.float64) + 0.5,
        "log_penalty": torch.tensor(math.log(penalty), dtype=torch.float64),
    }
    problem = Bilevel(inner, outer, params, hparams)
    return _solved(problem, 200) if solved else problem


def _spread(lowest: float, highest: float, size: int = 12) -> Tensor:
    return torch.logspace(math.log10(lowest), math.log10(highest), size, dtype=torch.float64)


# What every solver is tried on.
PROBLEMS: dict[str, Callable[[], Bilevel]] = {
    "A = I": lambda: quadratic(torch.ones(12, dtype=torch.float64)),
    "condition 1": lambda: quadratic(torch.full((12,), 3.0, dtype=torch.float64)),
    "condition 10": lambda: quadratic(_spread(0.1, 1.0)),
    "condition 1e4": lambda: quadratic(_spread(1e-3, 10.0)),
    "singular, damped": lambda: quadratic(
        torch.cat([torch.zeros(4).double(), _spread(0.1, 1.0, 8)]), damping=0.1
    ),
    "singular": lambda: quadratic(torch.cat([torch.zeros(4).double(), _spread(0.1, 1.0, 8)])),
    "indefinite": lambda: quadratic(torch.cat([-_spread(0.1, 0.5, 4), _spread(0.1, 1.0, 8)])),
    "logistic + L2": lambda: classification(2),
    "softmax + L2": lambda: classification(3),
    "two-layer network": network,
    "the same, untrained": lambda: network(solved=False),
}

PROBLEMS = {name: functools.cache(make) for name, make in PROBLEMS.items()}
