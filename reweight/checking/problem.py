"""A wrapped problem in float64, whose inner problem can be evaluated anywhere."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reweight._curvature import from_graph
from reweight._problem import (
    Hooked,
    Isolation,
    batch_in_double,
    hypergradient,
    isolated,
    twice_differentiable,
    unheld,
)
from reweight._tables import Graph
from reweight._tensors import (
    InFloat64,
    Tree,
    axpy,
    central_difference,
    default_double,
    filled,
    map_tensors,
    norm,
    tensors_in,
)
from reweight.checking.borrowed import Borrowed
from reweight.checking.budget import Budget
from reweight.hypergradient import Hypergradient
from reweight.losses import Losses
from reweight.preconditioning import diagonal_of
from reweight.solvers import Neumann
from reweight.verdict import WAYS
from reweight.wrapping import Reweighted

logger = logging.getLogger("reweight")

Objective = Callable[[], Tensor]
Map = Callable[[Tree], Tree]


@dataclass(frozen=True)
class ProximalTerm:
    """``½·strength·‖θ − centre‖²``, which has ``strength`` as its curvature."""

    strength: float
    centre: Tree


class Problem:
    """Inner and outer problem of a wrapped object, to be evaluated while :meth:`opened`.

    Attributes:
        bilevel: the problem, with an audit and an optimizer of its own.
        strategy: how the wrapped object solves, with its preconditioner as tensors.
        theta: the inner parameters, which the methods move in place.
        phi: the parameters of the weighter.
        decay: weight decay per inner parameter, by name.
        optimizer: the optimizer of the original.
        origin: the values of the inner parameters in the beginning.
        proximal: terms that are added to the inner loss.
        strangers: what the losses depend on and ``wrap`` does not know of, by name.
        budget: of time.
        hooked: what gradient hooks do.
        where: the original parameters stand in the inner problem, in words, once that is known.
    """

    def __init__(self, rw: Reweighted, batch: Any, dev_batch: Any, budget: Budget) -> None:
        stated = rw.problem
        self.budget, self.where = budget, ""
        self.optimizer = next(iter(stated.optimizers), None)
        self.bilevel = stated.apart()
        self.theta, self.phi = self.bilevel.theta(), self.bilevel.phi()
        self.decay = stated.weight_decay(self.theta)
        diagonal = diagonal_of(rw.strategy.preconditioner, stated.optimizers, self.theta)
        if diagonal is not None:
            diagonal = {name: entry.double() for name, entry in diagonal.items()}
        self._parts = self.bilevel.parts()
        self._borrowed = Borrowed(self._parts)
        solver = self._borrowed.copied(rw.strategy.solver)
        self.strategy = dataclasses.replace(rw.strategy, solver=solver, preconditioner=diagonal)
        self._as_given = self.batch, self.dev_batch = batch, dev_batch
        self.origin: Tree = {}
        self.proximal: list[ProximalTerm] = []
        self.strangers: dict[str, Tensor] = {}
        self._after_model: Isolation | None = None
        self._isolation = Isolation((), set())  # of nothing until opened
        self._mode, self._precision, self._widened = InFloat64(), ExitStack(), ExitStack()
        self.hooked = Hooked()

    @property
    def size(self) -> int:
        """The number of entries of the inner parameters."""
        return sum(p.numel() for p in self.theta.values())

    @property
    def twice(self) -> bool:
        """Whether autograd may give second derivatives, as far as is known."""
        by_differences = self.strategy.hvp == "finite_difference"
        return not by_differences and "autograd" not in self.bilevel.audit.findings.ruled_out

    @property
    def rounded_to(self) -> torch.dtype | None:
        """The type to which a part of an evaluation was rounded in spite of all, if any."""
        return self._mode.rounded_to

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Widen the tensors and isolate the modules while they are evaluated."""
        own = (*self.theta.values(), *self.phi.values())
        with torch.inference_mode(False), self._borrowed.in_double(own), self._widened:
            self.origin = copied(self.theta)
            self.batch, self.dev_batch = map(batch_in_double, self._as_given)
            given = tensors_in((self.batch, self.dev_batch))
            devices = self.bilevel.devices()
            with (
                isolated(
                    self._parts,
                    devices,
                    self.theta,
                    batches=given,
                    watch=True,
                    objects=self.bilevel.mutable(self._parts, self.batch, self.dev_batch),
                ) as self._isolation,
                twice_differentiable(),
                self._precision,
            ):
                self._precision.enter_context(self._mode)
                yield

    def begin(self) -> None:
        """Evaluate everything once, at the original parameters and nearby.

        Nearby, second derivatives are compared: this is done once, and they may be rounding where
        the losses are fitted perfectly.

        Raises:
            Exception: whatever the model raises in float64.
        """
        with self._isolation.watched():
            if self.bilevel.hooks is not None:
                self.hooked = self.bilevel.hooks.effect()
            self.outer_loss()
            graph = self._graph()
        known = {id(p) for p in (*self.theta.values(), *self.phi.values())}
        rest = [node for key, node in graph.leaves.items() if key not in known]
        given = tensors_in((self._as_given, self.batch, self.dev_batch))
        self.strangers = unheld(self.bilevel, rest, given, self._graph)
        self._widened.enter_context(self._borrowed.also_in_double(self.strangers.values()))
        self._mode.needed = False  # if it was, by those
        self.move_to(self.nearby())
        self.outer_gradient()
        self.hypergradient(solver=Neumann(0, step_size=1.0))  # no product, but the audit of them
        self.move_to(self.origin)
        if not self._mode.needed:
            self._precision.close()
            self._precision.enter_context(default_double())

    def restore(self) -> None:
        """Let the next pass start with the same buffers, dropout masks and noise."""
        self.budget.spend()
        self._borrowed.restore()
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
        """The losses of the train batch, without gradient.

        Made with gradients enabled, as losses may differentiate something themselves.
        """
        losses: Losses = map_tensors(Tensor.detach, self.evaluated())
        return losses

    def weighed(self, losses: Losses) -> Tensor:
        """The weights of ``losses``, with their graph."""
        self.restore()
        if self._after_model is not None:
            self._after_model.rewind()
        return self.bilevel.weights(losses)

    def weigh(self, losses: Losses) -> Tensor:
        """The weights of ``losses``, without gradient."""
        return self.weighed(losses).detach()

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

    def outer_loss(self) -> Tensor:
        """The outer loss, with its graph."""
        self.restore()
        return self.bilevel.outer_loss(self.dev_batch)

    def outer_gradient(self) -> float:
        """The norm of the outer loss's gradient by the inner parameters."""
        self.restore()
        return norm(self.gradient(self.bilevel.outer_loss(self.dev_batch)))

    def hypergradient(
        self, added: float = 0.0, solver: Any = None, *, decay: bool = True, damping: bool = True
    ) -> Hypergradient:
        """What the wrapped object computes here, with some things changed.

        Args:
            added: to the damping.
            solver: instead of its own, for the Hessian itself.
            decay: whether weight decay is part of the linear system.
            damping: whether the damping of the strategy is.
        """
        own = self.strategy
        strategy = dataclasses.replace(
            own,
            solver=own.solver if solver is None else solver,
            hvp="auto" if solver is not None and own.hvp in WAYS else own.hvp,
            damping=(own.damping if damping else 0.0) + added,
            preconditioner=own.preconditioner if solver is None else None,
            curvature=own.curvature if solver is None else "hessian",
        )
        (optimizer,) = self.bilevel.optimizers  # of the check
        kept = [group["weight_decay"] for group in optimizer.param_groups]
        self.restore()
        try:
            for group, rate in zip(optimizer.param_groups, kept, strict=True):
                group["weight_decay"] = rate if decay else 0.0
            return hypergradient(self.bilevel, self.batch, self.dev_batch, strategy)
        finally:
            for group, rate in zip(optimizer.param_groups, kept, strict=True):
                group["weight_decay"] = rate

    # -- derivatives ---------------------------------------------------------------------------

    def gradient(self, loss: Tensor, params: Tree | None = None) -> Tree:
        """The gradient of ``loss`` by θ or by ``params``, zero where it does not depend on them."""
        params = self.theta if params is None else params
        grads: Iterable[Tensor | None] = [None] * len(params)
        if loss.requires_grad:
            leaves = list(params.values())
            grads = torch.autograd.grad(loss, leaves, allow_unused=True, retain_graph=True)
        return self._entries(grads) if params is self.theta else filled(grads, params)

    def hessian(self, objective: Objective) -> Map:
        """Products with the Hessian of an objective by θ, at this point.

        By differences of gradients where autograd has no second derivatives.
        """
        if self.twice:
            try:
                linearisation = from_graph(objective(), self.theta, {})

                def hvp(v: Tree) -> Tree:
                    self.budget.spend()
                    return self.free(linearisation.everywhere(self.free(v)))

                hvp(self.theta)
                return hvp
            except RuntimeError as error:
                logger.info("no second derivatives of the inner problem: %s", str(error))

        def gradient_at(values: Tree) -> Tree:
            self.move_to(values)
            return self.gradient(objective())

        def differences(v: Tree) -> Tree:
            here, v = copied(self.theta), self.free(v)
            step = 1e-5 * (1.0 + norm(here)) / max(norm(v), 1e-300)
            product = central_difference(gradient_at, here, v, step)
            self.move_to(here)
            return product

        return differences

    def _entries(self, grads: Iterable[Tensor | None]) -> Tree:
        """A gradient or a product by θ, dense; zero for entries that a hook freezes."""
        return self.free(filled(grads, self.theta))

    def free(self, v: Tree) -> Tree:
        """A vector over θ without the entries that a hook freezes."""
        return v | {name: v[name] * mask for name, mask in self.hooked.free.items()}

    def _graph(self) -> Graph:
        """The graph of the losses."""
        losses = self.evaluated()
        return Graph(self.bilevel.inner_loss(losses, torch.ones_like(losses.weighted)))

    # -- positions -----------------------------------------------------------------------------

    def nearby(self) -> Tree:
        """Parameters near the origin at which no training has converged."""
        generator = torch.Generator().manual_seed(0)
        apart = {name: 0.01 * p * random(p, generator) for name, p in self.origin.items()}
        return axpy(1.0, self.free(apart), self.origin)

    def move_to(self, params: Tree) -> None:
        """Give the inner parameters these values."""
        move(self.theta, params)

    def move_by(self, step: Tree) -> None:
        """Add to the inner parameters."""
        self.move_to(axpy(1.0, step, copied(self.theta)))


def copied(tensors: Tree) -> Tree:
    """Copies of the values of leaves."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def move(tensors: Tree, values: Tree) -> None:
    """Give leaves other values, in place."""
    for name, tensor in tensors.items():
        # By .data: graphs that were recorded before can still be used when all is put back.
        tensor.data.copy_(values[name])


def random(like: Tensor, generator: torch.Generator) -> Tensor:
    """Independent standard normal numbers with the shape and the device of a tensor."""
    drawn = torch.randn(like.shape, generator=generator, dtype=torch.float64)
    return drawn.to(like.device)


def unit_direction(like: Tree, generator: torch.Generator) -> Tree:
    """A random direction of norm 1."""
    direction = {name: random(entry, generator) for name, entry in like.items()}
    size = norm(direction)
    return {name: entry * (1.0 / size) for name, entry in direction.items()}
