"""Random small bilevel problems, for hypothesis.

Each problem is at a minimum of its inner loss by construction: a linear term and a quadratic one
in the fixed part of the losses make the gradient zero and the Hessian positive definite at random
parameters. Nothing here uses the library but the weighters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from reweight import (
    BehavioralPerceptron,
    BehaviorInputs,
    ConstantWeighter,
    GroupWeighter,
    LossWeighter,
    SampleWeighter,
    TableWeighter,
)

MODELS = ("linear", "mlp", "embedding", "two_part")
WEIGHTERS = ("constant", "group", "table", "loss", "perceptron")
SOLVERS = ("cg", "neumann_auto", "neumann_fixed")
DIM = 2


@dataclass(frozen=True)
class Spec:
    """What hypothesis chooses; everything else follows from it."""

    model: str
    weighter: str
    solver: str
    hvp: str
    reduction: str
    batch_size: int
    decay: float
    damping: float
    seed: int


specs = st.builds(
    Spec,
    model=st.sampled_from(MODELS),
    weighter=st.sampled_from(WEIGHTERS),
    solver=st.sampled_from(SOLVERS),
    hvp=st.sampled_from(("auto", "func")),
    reduction=st.sampled_from(("mean", "sum")),
    batch_size=st.integers(1, 5),
    decay=st.sampled_from((0.0, 0.3)),
    damping=st.sampled_from((0.0, 0.5)),
    seed=st.integers(0, 10_000),
)


class Batch:
    """Two kinds of features, targets, and what the weighters look at."""

    def __init__(self, size: int, generator: torch.Generator) -> None:
        def randn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        def ids(high: int) -> Tensor:
            return torch.randint(high, (size,), generator=generator)

        self.size = size
        self.x = randn(size, DIM)
        self.y = randn(size)
        self.users, self.items, self.groups = ids(3), ids(3), ids(3)
        self.histories = BehaviorInputs(
            randn(size, DIM),
            randn(size, 3, DIM),
            randn(size, 2, DIM),
            torch.rand(size, 3, generator=generator) < 0.7,
            torch.rand(size, 2, generator=generator) < 0.7,
        )


class Model(nn.Module):
    """Per-sample losses of one of the kinds, and a fixed part."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        if kind == "linear":
            self.body: nn.Module = nn.Linear(DIM, 1)
        elif kind == "mlp":
            self.body = nn.Sequential(nn.Linear(DIM, 3), nn.Tanh(), nn.Linear(3, 1))
        elif kind == "embedding":
            self.users, self.items = nn.Embedding(3, 2), nn.Embedding(3, 2)
            self.bias = nn.Parameter(torch.zeros(()))
        else:
            self.body = nn.Sequential(nn.Linear(DIM, 2), nn.Tanh())
            self.source, self.target = nn.Linear(2, 1), nn.Linear(2, 1)
        self.double()
        size = sum(p.numel() for p in self.parameters())
        self.register_buffer("tilt", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("bowl", torch.zeros((), dtype=torch.float64))

    def losses(self, batch: Batch) -> Tensor:
        if self.kind == "embedding":
            scores = (self.users(batch.users) * self.items(batch.items)).sum(-1) + self.bias
            return F.binary_cross_entropy_with_logits(
                scores, (batch.y > 0).double(), reduction="none"
            )
        if self.kind == "two_part":
            return F.softplus(-batch.y * self.source(self.body(batch.x)).squeeze(-1))
        return (self.body(batch.x).squeeze(-1) - batch.y).square()

    def fixed(self, batch: Batch) -> Tensor:
        theta = torch.cat([p.reshape(-1) for p in self.parameters()])
        fixed = self.tilt @ theta + 0.5 * self.bowl * theta.square().sum()
        if self.kind == "two_part":
            fixed = fixed + (self.target(self.body(batch.x)).squeeze(-1) - batch.y).square().mean()
        return fixed

    def outer_loss(self, batch: Batch) -> Tensor:
        if self.kind == "two_part":
            return (self.target(self.body(batch.x)).squeeze(-1) - batch.y).square().mean()
        return self.losses(batch).mean()


@dataclass
class Problem:
    """A model at the minimum of its inner loss."""

    spec: Spec
    model: Model
    weighter: SampleWeighter
    inputs: Callable[[Batch], Any]
    train: Batch
    dev: Batch
    hessian: Tensor  # with weight decay and damping

    def inner(self, theta: Tensor, weights: Tensor) -> Tensor:
        """What the inner parameters minimise, written out."""
        spec = self.spec
        losses, fixed = self.call(theta, lambda m: (m.losses(self.train), m.fixed(self.train)))
        weighted = (weights * losses).sum()
        if spec.reduction == "mean":
            weighted = weighted / spec.batch_size
        decay = 0.5 * spec.decay * theta.square().sum()
        proximal = 0.5 * spec.damping * (theta - self.position()).square().sum()
        return weighted + fixed + decay + proximal

    def outer(self, theta: Tensor) -> Tensor:
        return self.call(theta, lambda m: m.outer_loss(self.dev))

    def position(self) -> Tensor:
        return torch.cat([p.detach().reshape(-1) for p in self.model.parameters()])

    def frozen_losses(self) -> Tensor:
        return self.model.losses(self.train).detach()

    def weigh(self) -> Tensor:
        """The weights now, of the losses and inputs at the solution."""
        with torch.no_grad():
            return self.weighter(self.frozen_losses(), self.inputs(self.train))

    def call(self, theta: Tensor, fn: Callable[[Model], Any]) -> Any:
        parts = theta.split([p.numel() for p in self.model.parameters()])
        named = dict(self.model.named_parameters())
        tensors = {n: t.view_as(p) for t, (n, p) in zip(parts, named.items(), strict=True)}
        return torch.func.functional_call(_Apply(self.model, fn), _prefixed(tensors), ())


class _Apply(nn.Module):
    def __init__(self, model: Model, fn: Callable[[Model], Any]) -> None:
        super().__init__()
        self.model = model
        self.fn = fn

    def forward(self) -> Any:
        return self.fn(self.model)


def _prefixed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"model.{name}": tensor for name, tensor in tensors.items()}


def anywhere(spec: Spec) -> Problem:
    """Random everything, at no minimum; the Hessian is left empty."""
    generator = torch.Generator().manual_seed(spec.seed)
    model = Model(spec.model)
    weighter, inputs = _weighter(spec.weighter)
    with torch.no_grad():
        for p in (*model.parameters(), *weighter.parameters()):
            p.copy_(0.7 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    train, dev = Batch(spec.batch_size, generator), Batch(4, generator)
    return Problem(spec, model, weighter, inputs, train, dev, torch.empty(0))


def make(spec: Spec) -> Problem:
    """Build the problem: random everything, then the terms that make it a minimum."""
    problem = anywhere(spec)
    model = problem.model
    theta, weights = problem.position(), problem.weigh()
    curvature = torch.linalg.eigvalsh(torch.func.hessian(problem.inner)(theta, weights))
    # A condition number of at most 20 for conjugate gradients, 4 for the slower series.
    condition = 20.0 if spec.solver == "cg" else 4.0
    low, high = float(curvature[0]), float(curvature[-1])
    model.bowl += max(0.0, (high - condition * low) / (condition - 1.0), 0.1 - low)
    model.tilt -= torch.func.grad(problem.inner)(theta, weights)
    problem.hessian = torch.func.hessian(problem.inner)(theta, weights)
    return problem


def _weighter(kind: str) -> tuple[SampleWeighter, Callable[[Batch], Any]]:
    weighter: SampleWeighter
    if kind == "constant":
        weighter, inputs = ConstantWeighter(), lambda batch: None
    elif kind == "group":
        weighter, inputs = GroupWeighter(3), lambda batch: batch.groups
    elif kind == "table":
        weighter, inputs = TableWeighter(5), lambda batch: torch.arange(batch.size)
    elif kind == "loss":
        weighter, inputs = LossWeighter(4), lambda batch: None
    else:
        weighter = BehavioralPerceptron(DIM, num_heads=2, hidden=3)
        inputs = lambda batch: batch.histories  # noqa: E731
    return weighter.double(), inputs
