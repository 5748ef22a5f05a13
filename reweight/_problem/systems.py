"""The inner problem and the linear system of an outer step, on its batch and on further ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from reweight._curvature import Slope, Stated, System
from reweight._problem.bilevel import BilevelProblem
from reweight._problem.in_place import InnerInPlace
from reweight._problem.inner import InnerProblem
from reweight._problem.isolation import Isolation, differentiable
from reweight._problem.outputs import ModelOutputs
from reweight._problem.shares import WHOLE, Shares, shares_of
from reweight._tensors import Tree, tensors_in
from reweight.hypergradient import ImplicitHypergradient
from reweight.losses import Losses
from reweight.solvers import SampleSpace


class Systems:
    """Makes the inner problems of one outer step, and their linear systems.

    Args:
        problem: the problem.
        strategy: how to solve.
        parts: every module that an evaluation may use.
        theta: the inner parameters.
        isolation: in which the model is evaluated.
    """

    def __init__(
        self,
        problem: BilevelProblem,
        strategy: ImplicitHypergradient,
        parts: Sequence[nn.Module],
        theta: Tree,
        isolation: Isolation,
    ) -> None:
        self._problem, self._strategy, self._parts = problem, strategy, parts
        self._theta, self._isolation = theta, isolation

    def inner(
        self, batch: Any, losses: Losses, weights: Tensor, tables: Tree, shares: Shares = WHOLE
    ) -> InnerProblem:
        """The inner problem on a batch.

        Args:
            batch: as the user passed it.
            losses: its losses, with their graph.
            weights: ``[B]``.
            tables: the embedding tables that the rows that are read may represent.
            shares: of this process.
        """
        problem = self._problem
        leaf = weights.detach().requires_grad_(True)

        def both(batch: Any, weights: Tensor) -> tuple[Losses, Tensor]:
            found = problem.evaluated(batch)
            return found, problem.inner_loss(found, weights, shares)

        def evaluate(batch: Any, weights: Tensor) -> Tensor:
            return both(batch, weights)[1]

        loss, outputs = problem.inner_loss(losses, leaf, shares), None
        if self._strategy.curvature == "gauss_newton" and (leaf.numel() or shares.total):
            outputs = ModelOutputs(losses, loss, self._theta, both)
        return InnerProblem(
            parts=self._parts,
            evaluate=evaluate,
            batch=batch,
            weights=leaf,
            loss=loss,
            theta=self._theta,
            tables=tables,
            isolation=self._isolation,
            outputs=outputs,
        )

    def system(self, inner: InnerProblem, free: Tree) -> System:
        """The linear system of an inner problem.

        Args:
            inner: the inner problem.
            free: masks of the parameters' shapes, 0 where an entry is a constant.
        """
        decay, damping = self._problem.weight_decay(inner.theta), self._strategy.damping

        def slope() -> Slope:
            in_place = InnerInPlace(inner, inner.reached())
            return Slope(in_place.gradients, in_place.params(), in_place.rows)

        return System(
            params=inner.theta,
            hparams={"weights": inner.weights},
            loss=lambda: inner.loss,
            function=inner.function,
            slope=slope,
            tables=inner.tables,
            constants=free,
            shift={name: decay[name] + damping for name in inner.theta},
            preconditioner=self._strategy.preconditioner,
            optimizers=self._problem.optimizers,
            outputs=self._stated(inner),
        )

    def _stated(self, inner: InnerProblem) -> Stated | None:
        """The inner loss as a function of the model's outputs, for Gauss-Newton products."""
        if inner.outputs is None:
            return None
        return Stated(
            outputs=inner.outputs.values,
            loss=inner.loss,
            function=inner.forward,
            moved=lambda: InnerInPlace(inner, inner.reached()).moved(),
            by_layers=isinstance(self._strategy.solver, SampleSpace),
        )

    def of_further(self, free: Tree) -> Callable[[Any], System]:
        """A function that makes the system of a further batch."""

        def system(batch: Any) -> System:
            batch = differentiable(batch)
            self._isolation.include(tensors_in(batch))
            self._isolation.restore()
            losses = self._problem.losses(batch)
            with torch.no_grad():
                weights = self._problem.weights(losses)
            shares = shares_of(batch, batch, self._problem.notices).with_losses(len(weights))
            return self.system(self.inner(batch, losses, weights, {}, shares), free)

        return system
