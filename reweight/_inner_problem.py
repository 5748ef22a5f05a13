"""The inner problem on one train batch, and its second derivatives."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from reweight._examination import Examination, InDouble
from reweight._graph import reached
from reweight._isolation import Isolation, is_compiled, twice_differentiable
from reweight._linearise import (
    Linearisation,
    Mode,
    from_graph,
    with_finite_difference,
    with_func,
)
from reweight._point import Point
from reweight._rows import looked_up
from reweight._trees import Tree

logger = logging.getLogger("reweight")

UNTOUCHED = (
    "the losses that get weights do not depend on any inner parameter: a detach() or no_grad() in "
    "losses, or inner_params leaves out what they use"
)


class InnerProblem:
    """The inner loss of a model on a batch whose samples have some weights.

    Args:
        model: is left alone.
        evaluate: ``(batch, weights) -> []``, the inner loss, by the model.
        batch: as the user handed it over.
        weights: ``[B]``, a leaf.
        loss: what it came to, with its graph.
        theta: the inner parameters.
        tables: those of them that may be served by the rows that are read.
        isolation: that the model is evaluated in.
    """

    def __init__(
        self,
        model: nn.Module,
        evaluate: Callable[[Any, Tensor], Tensor],
        batch: Any,
        weights: Tensor,
        loss: Tensor,
        theta: Tree,
        tables: Tree,
        isolation: Isolation,
    ) -> None:
        self._model, self._evaluate, self._isolation = model, evaluate, isolation
        self._batch, self._weights, self._loss = batch, weights, loss
        self._theta, self._tables = theta, tables

    def linearise(
        self, mode: Mode, examination: Examination | None = None, *, auto: bool = False
    ) -> Linearisation:
        """The second derivatives by the inner parameters and the weights.

        Args:
            mode: how.
            examination: compares them with differences, where it has not done so yet.
            auto: whether another mode may take the place of this one.

        Raises:
            ValueError: the loss depends on no inner parameter.
        """
        if mode == "autograd":
            # The forward pass that gave the losses is the one to differentiate.
            tables = looked_up(self._loss, self._tables)
            hparams = {"weights": self._weights}
            linearisation = from_graph(self._loss, self._theta, hparams, tables)
            if examination is None or mode in examination.compared:
                return linearisation
            elsewhere = self._elsewhere()
        else:
            elsewhere = self._elsewhere()
            linearisation = self._by_evaluation(mode, elsewhere)
        if examination is not None:
            double = InDouble(
                elsewhere, self._evaluate, self._batch, self._weights, self._isolation
            )
            examination.look(mode, linearisation, double, auto=auto)
        return linearisation

    def _elsewhere(self) -> Point:
        """What can be moved to evaluate the loss anew."""
        # A compiled part would be compiled anew to see other values in a look-up.
        whole = is_compiled(self._model)
        tables = {} if whole else looked_up(self._loss, self._tables)
        return self._movable(Point(self._model, self._theta, tables))

    def _by_evaluation(self, mode: Mode, point: Point) -> Linearisation:
        point = point.only(reached(self._loss, point.theta))
        if not point.theta:
            raise ValueError(UNTOUCHED)
        values, hparams = point.values(), {"weights": self._weights}
        inner = self._function(point, copied=mode == "func")
        if mode == "func":
            linearisation = with_func(inner, values, hparams)
        else:
            linearisation = with_finite_difference(inner, values, hparams, point.at)
        return dataclasses.replace(linearisation, rows=point.rows)

    def _movable(self, point: Point) -> Point:
        """The same with those tables whole whose look-ups do not read what they are told.

        A look-up in a scripted function, by a list of indices or by an operator's own name is not
        seen; one that runs again in a backward pass is not either; and losses may ask for their
        gradient by the table itself.
        """
        if not point.tables:
            return point
        values = {name: v.detach().requires_grad_(True) for name, v in point.values().items()}
        try:
            with point.at(values):
                inner = self._function(point, copied=False)
                loss = inner(values, {"weights": self._weights})
                torch.autograd.grad(loss, list(values.values()), allow_unused=True)
        except Exception as error:
            logger.info("tables are served whole, since by their rows: %s", str(error))
            return Point(self._model, point.theta, {})
        missed = reached(loss, {name: table.weight for name, table in point.tables.items()})
        kept = {name: table for name, table in point.tables.items() if name not in missed}
        return Point(self._model, point.theta, kept)

    def _function(self, point: Point, *, copied: bool) -> Callable[[Tree, Tree], Tensor]:
        """The inner loss as a function of the inner parameters and the weights."""

        def inner(params: Tree, hparams: Tree) -> Tensor:
            # The same dropout mask every time. Copied buffers have nothing to be put back.
            self._isolation.rewind() if copied else self._isolation.restore()
            buffers = torch.clone if copied else None
            with point.at(params, buffers=buffers), twice_differentiable():
                return self._evaluate(self._batch, hparams["weights"])

        return inner
