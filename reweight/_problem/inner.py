"""The inner problem on one train batch."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from reweight._curvature import Function
from reweight._problem.functional import FunctionalModel
from reweight._problem.isolation import Isolation, is_compiled, twice_differentiable
from reweight._tables import looked_up, reached
from reweight._tensors import Tree, new_leaves

logger = logging.getLogger("reweight")

UNTOUCHED = (
    "the losses that get weights do not depend on any inner parameter: a detach() or no_grad() in "
    "losses, or inner_params leaves out what they use"
)


class InnerProblem:
    """The inner loss of a model on one batch, at given weights of its samples.

    Args:
        model: the model.
        evaluate: ``(batch, weights) -> []``, evaluates the inner loss by the model.
        batch: as the user passed it.
        weights: ``[B]``, a leaf.
        loss: the value of the inner loss, with its graph.
        theta: the inner parameters.
        tables: the embedding tables among them, which the rows that are read may represent.
        isolation: in which the model is evaluated.
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
        self.evaluate, self.batch, self.weights, self.loss = evaluate, batch, weights, loss
        self.isolation = isolation
        self.theta = theta
        self.tables = looked_up(loss, tables)
        self._model = model
        self._functional: FunctionalModel | None = None

    def functional_model(self) -> FunctionalModel:
        """The model as a function of the values that can be substituted.

        The first call evaluates the loss to find that out, if there are tables.
        """
        if self._functional is None:
            # A compiled part would be compiled again to substitute the rows of a table.
            tables = {} if is_compiled(self._model) else self.tables
            self._functional = self._substitutable(FunctionalModel(self._model, self.theta, tables))
        return self._functional

    def function(self) -> Function:
        """The inner loss as a function of θ and the weights.

        Raises:
            ValueError: the loss depends on no inner parameter.
        """
        model = self.functional_model()
        model = model.only(reached(self.loss, model.theta))
        if not model.theta:
            raise ValueError(UNTOUCHED)
        return Function(self._objective(model), model.values(), model.rows, model.at)

    def _substitutable(self, model: FunctionalModel) -> FunctionalModel:
        """``model``, with those tables as a whole whose look-ups ignore substituted rows.

        Substitution does not see a look-up in a scripted function, by a list of indices or by an
        operator's ``aten`` name, nor one that runs again in a backward pass. Losses may also ask
        for their gradient by the table itself.
        """
        if not model.tables:
            return model
        values = new_leaves(model.values())
        try:
            with model.at(values):
                loss = self._objective(model)(values, {"weights": self.weights})
                torch.autograd.grad(loss, list(values.values()), allow_unused=True)
        except Exception as error:
            logger.info("tables are used as a whole; by rows they raise: %s", str(error))
            return FunctionalModel(self._model, model.theta, {})
        missed = reached(loss, {name: table.weight for name, table in model.tables.items()})
        kept = {name: table for name, table in model.tables.items() if name not in missed}
        return FunctionalModel(self._model, model.theta, kept)

    def _objective(self, model: FunctionalModel) -> Callable[[Tree, Tree], Tensor]:
        def inner(params: Tree, hparams: Tree) -> Tensor:
            # The same dropout mask in every evaluation.
            self.isolation.restore(copies=False)
            # Copies of buffers: torch.func can't update captured tensors in place.
            with model.at(params, buffers=self.isolation.saved), twice_differentiable():
                return self.evaluate(self.batch, hparams["weights"])

        return inner
