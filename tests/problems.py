"""Problems whose hypergradient is known without the library."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reweight import (
    ConjugateGradient,
    Identity,
    ImplicitHypergradient,
    Neumann,
    Nystrom,
    PowerIteration,
    SolveInfo,
    TableWeighter,
)
from reweight.verdict import TRUSTED_ERROR


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
    weighter: TableWeighter
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
    weighter = TableWeighter(size).double()
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


def relative_error(x: Tensor, y: Tensor) -> float:
    """The distance of ``x`` from ``y``, as a share of the size of ``y``."""
    return float((x - y).norm() / y.norm())


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


# -- problems with a dense oracle ----------------------------------------------------------------

Tree = dict[str, Tensor]


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

# What every problem is tried with: the solver, and a diagonal preconditioner or not.
SOLVERS: dict[str, tuple[Any, bool]] = {
    "Identity()": (Identity(), False),
    "Neumann(3)": (Neumann(3), False),
    "Neumann(3, step_size=1.0)": (Neumann(3, step_size=1.0), False),
    "Neumann(30, step_size=1.0)": (Neumann(30, step_size=1.0), False),
    "Neumann(500)": (Neumann(500), False),
    "Neumann(500, PowerIteration())": (Neumann(500, PowerIteration()), False),
    "Neumann(500), preconditioned": (Neumann(500), True),
    "CG()": (ConjugateGradient(), False),
    "CG(200, rtol=1e-10)": (ConjugateGradient(200, rtol=1e-10), False),
    "CG(200, rtol=1e-3)": (ConjugateGradient(200, rtol=1e-3), False),
    "CG(200, rtol=1e-10), preconditioned": (ConjugateGradient(200, rtol=1e-10), True),
    "Nystrom(4)": (Nystrom(4), False),
    "Nystrom(100, 1e-6)": (Nystrom(100, damping=1e-6), False),
    "Nystrom(6, leverage)": (Nystrom(6, columns="leverage"), False),
}


def allowed_error(info: SolveInfo) -> float:
    """How far from the oracle an answer may be that its verdict calls trustworthy.

    The error that the verdict itself expects, which comes from the flattest direction met and so
    may be a little short, but never more than what trustworthy means; and rounding, of condition
    numbers up to 1e4.
    """
    return min(3.0 * (info.error_estimate or TRUSTED_ERROR) + 1e-11, TRUSTED_ERROR)


def strategy(name: str, problem: Bilevel) -> ImplicitHypergradient:
    """The row of the table, for a problem; the preconditioner is that of Jacobi."""
    solver, preconditioned = SOLVERS[name]
    if not preconditioned:
        return ImplicitHypergradient(solver, problem.damping)
    diagonal = problem.hessian().diagonal().abs().clamp_min(1e-3)
    return ImplicitHypergradient(
        solver, problem.damping, preconditioner=problem.parted(1.0 / diagonal, problem.params)
    )
