"""A float64 copy of a wrapped problem, whose inner problem can be evaluated anywhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reweight._problem import (
    Isolation,
    batch_in_double,
    hypergradient,
    isolated,
    parts_of,
    twice_differentiable,
)
from reweight._tensors import Tree, filled, norm
from reweight.hypergradient import Hypergradient
from reweight.losses import Losses
from reweight.preconditioning import diagonal_of
from reweight.solvers import Identity
from reweight.wrapping import Reweighted


@dataclass(frozen=True)
class ProximalTerm:
    """``½·strength·‖θ − centre‖²``, which has ``strength`` as its curvature."""

    strength: float
    centre: Tree


class Problem:
    """Inner and outer problem of a wrapped object, on a copy in float64.

    Attributes:
        bilevel: the copy.
        strategy: how the wrapped object solves, with its preconditioner as tensors.
        theta: the inner parameters of the copy, which the methods move in place.
        phi: the parameters of its weighter.
        decay: weight decay per inner parameter, by name.
        optimizer: the optimizer of the original.
        origin: the values of the inner parameters when the copy was made.
        proximal: terms that are added to the inner loss.
    """

    def __init__(self, rw: Reweighted, batch: Any, dev_batch: Any) -> None:
        stated = rw.problem
        self.optimizer = stated.optimizers
        self.decay = stated.weight_decay(stated.theta())
        self.bilevel, strategy = stated.in_double(rw.strategy)
        self.theta, self.phi = self.bilevel.theta(), self.bilevel.phi()
        diagonal = diagonal_of(strategy.preconditioner, stated.optimizers, stated.theta())
        if diagonal is not None:
            diagonal = {name: entry.double() for name, entry in diagonal.items()}
        self.strategy = dataclasses.replace(strategy, preconditioner=diagonal)
        self.batch, self.dev_batch = batch_in_double(batch), batch_in_double(dev_batch)
        self.origin = copied(self.theta)
        self.proximal: list[ProximalTerm] = []
        self._after_model: Isolation | None = None
        self._isolation = Isolation((), set())  # of nothing until opened

    @property
    def size(self) -> int:
        """The number of entries of the inner parameters."""
        return sum(p.numel() for p in self.theta.values())

    @property
    def twice(self) -> bool:
        """Whether autograd may give second derivatives, as far as is known."""
        by_differences = self.strategy.hvp == "finite_difference"
        return not by_differences and "autograd" not in self.bilevel.audit.findings.ruled_out

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Isolate the copy while it is evaluated."""
        parts = parts_of(self.bilevel.model, self.bilevel.weighter)
        with isolated(parts, self.bilevel.devices()) as self._isolation, twice_differentiable():
            yield

    def restore(self) -> None:
        """Let the next pass start with the same buffers, dropout masks and noise."""
        self._isolation.restore()

    # -- values --------------------------------------------------------------------------------

    def evaluated(self) -> Losses:
        """The losses of the train batch, with their graph."""
        self.restore()
        losses = self.bilevel.losses(self.batch)
        if self._after_model is None:  # the random state in which the weighter draws
            self._after_model = Isolation((), self.bilevel.devices())
        return losses

    def losses(self) -> Losses:
        """The losses of the train batch, without gradient."""
        with torch.no_grad():
            return self.evaluated()

    def weighed(self, losses: Losses) -> Tensor:
        """The weights of ``losses``, with their graph."""
        self.restore()
        if self._after_model is not None:
            self._after_model.rewind()
        return self.bilevel.weights(losses)

    def weigh(self, losses: Losses) -> Tensor:
        """The weights of ``losses``, without gradient."""
        with torch.no_grad():
            return self.weighed(losses)

    def objective(self, weights: Tensor | None = None) -> Tensor:
        """The inner loss with weight decay and proximal terms, by default at its own weights."""
        losses = self.evaluated()
        loss = self.bilevel.inner_loss(losses, self.weigh(losses) if weights is None else weights)
        for name, p in self.theta.items():
            if decay := self.decay.get(name, 0.0):
                loss = loss + 0.5 * decay * p.square().sum()
            for term in self.proximal:
                loss = loss + 0.5 * term.strength * (p - term.centre[name]).square().sum()
        return loss

    def gradient(self, weights: Tensor | None = None) -> Tree:
        """The gradient of :meth:`objective` by the inner parameters."""
        return gradient(self.objective(weights), self.theta)

    def outer_loss(self) -> Tensor:
        """The outer loss, with its graph."""
        self.restore()
        return self.bilevel.outer_loss(self.dev_batch)

    def outer_gradient(self) -> float:
        """The norm of the outer loss's gradient by the inner parameters."""
        self.restore()
        return norm(gradient(self.bilevel.outer_loss(self.dev_batch), self.theta))

    def hypergradient(
        self, added: float = 0.0, solver: Any = None, *, decay: bool = True, damping: bool = True
    ) -> Hypergradient:
        """What the wrapped object computes here, with some things changed.

        Args:
            added: to the damping.
            solver: instead of its own.
            decay: whether weight decay is part of the linear system.
            damping: whether the damping of the strategy is.
        """
        own = self.strategy
        strategy = dataclasses.replace(
            own,
            solver=own.solver if solver is None else solver,
            damping=(own.damping if damping else 0.0) + added,
            preconditioner=own.preconditioner if solver is None else None,
        )
        decaying = self.bilevel.optimizers
        self.restore()
        try:
            self.bilevel.optimizers = decaying if decay else ()
            return hypergradient(self.bilevel, self.batch, self.dev_batch, strategy)
        finally:
            self.bilevel.optimizers = decaying

    # -- positions -----------------------------------------------------------------------------

    def nearby(self) -> Tree:
        """Parameters near the origin at which no training has converged."""
        generator = torch.Generator().manual_seed(0)
        return {name: p * (1.0 + 0.01 * random(p, generator)) for name, p in self.origin.items()}

    def audit(self) -> None:
        """Compare second derivatives where they are not zero.

        They are compared once, and may be rounding where the losses are fitted perfectly.
        """
        self.move_to(self.nearby())
        self.hypergradient(solver=Identity())
        self.move_to(self.origin)

    def move_to(self, params: Tree) -> None:
        """Give the inner parameters these values."""
        move(self.theta, params)


def copied(tensors: Tree) -> Tree:
    """Copies of the values of leaves."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def move(tensors: Tree, values: Tree) -> None:
    """Give leaves other values, in place."""
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(values[name])


def random(like: Tensor, generator: torch.Generator) -> Tensor:
    """Independent standard normal numbers with the shape and the device of a tensor."""
    drawn = torch.randn(like.shape, generator=generator, dtype=torch.float64)
    return drawn.to(like.device)


def unit_direction(like: Tree, generator: torch.Generator) -> Tree:
    """A random direction of norm 1."""
    direction = {name: random(entry, generator) for name, entry in like.items()}
    size = norm(direction)
    return {name: entry * (1.0 / size) for name, entry in direction.items()}


def gradient(loss: Tensor, params: Tree) -> Tree:
    """The gradient of ``loss``, dense, zero where it does not depend on a parameter."""
    if not loss.requires_grad:
        return filled([None] * len(params), params)
    grads = torch.autograd.grad(loss, list(params.values()), allow_unused=True, retain_graph=True)
    return filled(grads, params)
