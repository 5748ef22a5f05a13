"""The inner loss as a function of the model's outputs, for Gauss-Newton products."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor

from reweight._curvature import (
    Forward,
    Mode,
    OutputHessian,
    Outputs,
    gauss_newton,
    jacobian_by_func,
    jacobian_of_graph,
    pull_of_graph,
)
from reweight._tables import Graph, GraphInputs
from reweight._tensors import Tree, new_leaves, some, tensors_in
from reweight.losses import Losses

_NO_OUTPUTS = (
    'curvature="gauss_newton" needs the losses as a function of the model\'s outputs: return '
    "reweight.Losses.of(outputs, loss_fn) from losses(model, batch), for instance "
    "Losses.of(model(x), lambda logits: cross_entropy(logits, y, reduction='none')); or choose "
    'curvature="hessian"'
)


class ModelOutputs:
    """The outputs of the model on one batch, between θ and the inner loss.

    Args:
        losses: as they were evaluated.
        loss: the inner loss of them.
        theta: the inner parameters.
        evaluate: ``(batch, weights) -> (losses, inner loss)``, evaluates them anew.

    Raises:
        ValueError: losses without outputs, or that depend on θ in another way than through them.

    Attributes:
        values: those outputs that have a graph.
    """

    def __init__(
        self,
        losses: Losses,
        loss: Tensor,
        theta: Tree,
        evaluate: Callable[[Any, Tensor], tuple[Losses, Tensor]],
    ) -> None:
        if losses.outputs is None:
            raise ValueError(_NO_OUTPUTS)
        found = _floating(losses)
        self._alive = [z.requires_grad for z in found]
        self._evaluate = evaluate
        self.values = self._chosen(losses)
        if not self.values:
            raise ValueError(
                "the outputs in Losses.of(outputs, loss_fn) do not depend on any inner parameter: "
                "a detach() or no_grad() in losses, or inner_params leaves out what they use"
            )
        around = Graph(loss, until={z.grad_fn for z in self.values if z.grad_fn}).reached(theta)
        if around:
            raise ValueError(
                f"the losses depend on {some(dict.fromkeys(around))} in another way than through "
                "the outputs in Losses.of(outputs, loss_fn): a penalty in fixed=..., or a "
                "parameter that loss_fn uses. Return what they are computed from as one more "
                "output, leave an L2 penalty to the optimizer's weight_decay, or choose "
                'curvature="hessian"'
            )

    def evaluated(self, batch: Any, weights: Tensor) -> tuple[Outputs, Tensor]:
        """The same outputs, and the inner loss, evaluated anew."""
        losses, loss = self._evaluate(batch, weights)
        return self._chosen(losses), loss

    def _chosen(self, losses: Losses) -> Outputs:
        return tuple(z for z, alive in zip(_floating(losses), self._alive, strict=True) if alive)


def _floating(losses: Losses) -> list[Tensor]:
    return [x for x in tensors_in(losses.outputs) if x.is_floating_point()]


class Evaluation(Protocol):
    """An inner problem that can be evaluated at other values of θ."""

    def params(self) -> Tree:
        """θ; rows in the place of tables."""

    def evaluate(self, params: Tree) -> tuple[float, Tree]:
        """``θ -> (inner, ∇inner)``."""

    def recorded(self, params: Tree) -> AbstractContextManager[tuple[Outputs, Tensor, GraphInputs]]:
        """The outputs and the loss at θ, with their graph, and what it is differentiated by."""

    def forward(self, params: Tree) -> AbstractContextManager[Forward]:
        """The outputs as a pure function of θ, while the context is open."""


class GaussNewtonAt:
    """Gauss-Newton products at one point, and first derivatives whose differences they are.

    With ``J`` held fixed at a point, ``Jᵀ ∇L(outputs(θ))`` is the gradient there, and its
    derivative by θ is the Gauss-Newton matrix. So differences of it check products, and take
    nothing but backward passes.

    Args:
        problem: the inner problem; the first point at which it is evaluated is the fixed one.
    """

    def __init__(self, problem: Evaluation) -> None:
        self._problem = problem
        self._at: Tree | None = None

    def evaluate(self, params: Tree) -> tuple[float, Tree]:
        """``θ -> (inner(θ), Jᵀ ∇L(outputs(θ)))``."""
        if self._at is None:
            self._at = params
            return self._problem.evaluate(params)
        with self._problem.recorded(params) as (outputs, loss, _):
            by_outputs = torch.autograd.grad(loss, outputs, allow_unused=True)
            value = float(loss.detach())
        with self._problem.recorded(new_leaves(self._at)) as (outputs, _, inputs):
            return value, pull_of_graph(outputs, inputs)(by_outputs)

    def product(self, mode: Mode, params: Tree, v: Tree) -> Tree:
        """``(θ, v) -> Jᵀ H_out J v`` in this mode."""
        with self._problem.recorded(params) as (outputs, loss, inputs):
            curvature = OutputHessian(loss, outputs, {})
            if mode == "autograd":
                jacobian = jacobian_of_graph(outputs, inputs.params, inputs.tables)
                return gauss_newton(jacobian, curvature).everywhere(v)
        with self._problem.forward(params) as forward:
            return gauss_newton(jacobian_by_func(forward), curvature).everywhere(v)
