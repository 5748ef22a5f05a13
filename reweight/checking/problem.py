"""A float64 copy of what was wrapped, whose inner problem can be evaluated anywhere."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reweight._problem import (
    BilevelProblem,
    Isolation,
    batch_in_double,
    in_double,
    isolated,
    twice_differentiable,
)
from reweight._tensors import Tree, filled, norm
from reweight.hypergradient import Hypergradient
from reweight.losses import Losses
from reweight.preconditioning import diagonal_of
from reweight.solvers import Identity
from reweight.wrapping import Reweighted


@dataclass(frozen=True)
class Spring:
    """The proximal term ``½·strength·‖θ − centre‖²``, which has ``strength`` as its curvature."""

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
        springs: terms that are added to the inner loss.
    """

    def __init__(self, rw: Reweighted, batch: Any, dev_batch: Any) -> None:
        stated = rw.problem
        self.optimizer = stated.optimizer
        self.decay = stated.weight_decay(stated.theta())
        self.bilevel: BilevelProblem = in_double(stated)
        self.theta, self.phi = self.bilevel.theta(), self.bilevel.phi()
        # A user's solver may keep a state.
        told = copy.deepcopy(rw.strategy)
        diagonal = diagonal_of(told.preconditioner, stated.optimizer, stated.theta())
        if diagonal is not None:
            diagonal = {name: entry.double() for name, entry in diagonal.items()}
        self.strategy = dataclasses.replace(told, preconditioner=diagonal)
        self._decaying = self.bilevel.optimizer
        self.batch, self.dev_batch = batch_in_double(batch), batch_in_double(dev_batch)
        self.origin = self.position()
        self._drawn: Isolation | None = None
        self.springs: list[Spring] = []
        self._isolation = Isolation((), set())  # of nothing until opened

    @property
    def size(self) -> int:
        """The number of inner parameters, entry by entry."""
        return sum(p.numel() for p in self.theta.values())

    @property
    def twice(self) -> bool:
        """Whether second derivatives may be had from autograd, as far as is known."""
        told = self.strategy.hvp == "finite_difference"
        return not told and "autograd" not in self.bilevel.audit.ruled_out

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Isolate the copy while it is evaluated."""
        with (
            isolated(
                (self.bilevel.model, self.bilevel.weighter), self.bilevel.devices()
            ) as self._isolation,
            twice_differentiable(),
        ):
            yield

    def restore(self) -> None:
        """Make the next pass see what the one before saw: buffers, dropout masks, noise."""
        self._isolation.restore()

    # -- values --------------------------------------------------------------------------------

    def losses(self) -> Losses:
        """The losses of the train batch, without gradient."""
        with torch.no_grad():
            return self.evaluated()

    def evaluated(self) -> Losses:
        """The losses of the train batch, with their graph."""
        self.restore()
        losses = self.bilevel.losses(self.batch)
        if self._drawn is None:
            # A weighter draws after the model.
            self._drawn = Isolation((), self.bilevel.devices())
        return losses

    def weigh(self, losses: Losses) -> Tensor:
        """The weights of ``losses``, without gradient."""
        with torch.no_grad():
            return self.weighed(losses)

    def weighed(self, losses: Losses) -> Tensor:
        """The weights of ``losses``, with their graph."""
        self.restore()
        if self._drawn is not None:
            self._drawn.rewind()
        return self.bilevel.weights(losses)

    def objective(self, weights: Tensor | None = None) -> Tensor:
        """The inner loss with all that curves it, at these weights, or else at those it has."""
        losses = self.evaluated()
        loss = self.bilevel.inner_loss(losses, self.weigh(losses) if weights is None else weights)
        for name, p in self.theta.items():
            if decay := self.decay.get(name, 0.0):
                loss = loss + 0.5 * decay * p.square().sum()
            for spring in self.springs:
                loss = loss + 0.5 * spring.strength * (p - spring.centre[name]).square().sum()
        return loss

    def gradient(self, weights: Tensor | None = None) -> Tree:
        """The gradient of :meth:`objective` by the inner parameters."""
        return gradient(self.objective(weights), self.theta)

    def outer(self) -> float:
        """The outer loss."""
        self.restore()
        with torch.no_grad():
            return float(self.bilevel.outer_loss(self.dev_batch))

    def outer_gradient(self) -> float:
        """The size of the outer loss's gradient by the inner parameters."""
        self.restore()
        return norm(self.bilevel.outer_gradients(self.theta, {}, {}, self.dev_batch)[0])

    def hypergradient(
        self, added: float = 0.0, solver: Any = None, *, decay: bool = True, damping: bool = True
    ) -> Hypergradient:
        """What the wrapped object computes here, or would compute with some things changed.

        Args:
            added: to the damping.
            solver: in the place of the one it has.
            decay: whether the solver is told of weight decay.
            damping: whether the solver is told of the damping.
        """
        told = self.strategy
        strategy = dataclasses.replace(
            told,
            solver=told.solver if solver is None else solver,
            damping=(told.damping if damping else 0.0) + added,
            preconditioner=told.preconditioner if solver is None else None,
        )
        self.bilevel.optimizer = self._decaying if decay else None
        self.restore()
        try:
            return self.bilevel.hypergradient(self.batch, self.dev_batch, strategy)
        finally:
            self.bilevel.optimizer = self._decaying

    # -- places --------------------------------------------------------------------------------

    def position(self) -> Tree:
        """A copy of the inner parameters."""
        return copied(self.theta)

    def beside(self) -> Tree:
        """A place near the origin that nothing has come to rest at."""
        generator = torch.Generator().manual_seed(0)
        return {name: p * (1.0 + 0.01 * random(p, generator)) for name, p in self.origin.items()}

    def look_beside(self) -> None:
        """Have the copy's second derivatives judged where they are not all but zero.

        They are judged once, and may be rounding where the losses are fitted perfectly.
        """
        self.move_to(self.beside())
        self.hypergradient(solver=Identity())
        self.move_to(self.origin)

    def move_to(self, params: Tree) -> None:
        """Give the inner parameters these values."""
        move(self.theta, params)


def copied(tensors: Tree) -> Tree:
    """The values of leaves, apart from them."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def random(like: Tensor, generator: torch.Generator) -> Tensor:
    """Independent normal numbers, in the shape of a tensor and on its device."""
    drawn = torch.randn(like.shape, generator=generator, dtype=torch.float64)
    return drawn.to(like.device)


def move(tensors: Tree, values: Tree) -> None:
    """Give leaves other values, in place."""
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(values[name])


def gradient(loss: Tensor, params: Tree) -> Tree:
    """The gradient of ``loss``, dense, zero where it does not depend on a parameter."""
    if not loss.requires_grad:
        return filled([None] * len(params), params)
    grads = torch.autograd.grad(loss, list(params.values()), allow_unused=True, retain_graph=True)
    return filled(grads, params)
