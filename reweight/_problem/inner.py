"""The inner problem on one train batch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from reweight._curvature import Forward, Function, Outputs
from reweight._problem.functional import FunctionalModel
from reweight._problem.isolation import (
    Isolation,
    is_compiled,
    parameters_of,
    twice_differentiable,
)
from reweight._problem.outputs import ModelOutputs
from reweight._tables import Graph, GraphInputs, looked_up
from reweight._tensors import Tree, new_leaves, some

logger = logging.getLogger("reweight")

UNTOUCHED = (
    "the losses that get weights do not depend on any inner parameter: a detach() or no_grad() in "
    "losses, or inner_params leaves out what they use"
)


def padding_rows(parts: Sequence[nn.Module], theta: Tree) -> dict[str, int]:
    """The padding rows of the embedding tables among the inner parameters, by name."""
    rows = {
        id(part._parameters.get("weight")): part.padding_idx
        for part in parts
        if isinstance(part, (nn.Embedding, nn.EmbeddingBag))
    }
    found = {name: rows.get(id(p)) for name, p in theta.items()}
    return {name: row for name, row in found.items() if row is not None}


class InnerProblem:
    """The inner loss of a model on one batch, at given weights of its samples.

    Args:
        parts: every module that the loss uses.
        evaluate: ``(batch, weights) -> []``, evaluates the inner loss by the model.
        batch: as the user passed it.
        weights: ``[B]``, a leaf.
        loss: the value of the inner loss, with its graph.
        theta: the inner parameters.
        tables: the embedding tables among them, which the rows that are read may represent.
        isolation: in which the model is evaluated.
        outputs: the model's outputs, where products are Gauss-Newton ones.
    """

    def __init__(
        self,
        parts: Sequence[nn.Module],
        evaluate: Callable[[Any, Tensor], Tensor],
        batch: Any,
        weights: Tensor,
        loss: Tensor,
        theta: Tree,
        tables: Tree,
        isolation: Isolation,
        outputs: ModelOutputs | None = None,
    ) -> None:
        self.outputs = outputs
        self.evaluate, self.batch, self.weights, self.loss = evaluate, batch, weights, loss
        self.isolation = isolation
        self.theta = theta
        self.graph = Graph(loss)
        self.tables = looked_up(self.graph, tables)
        self.parts = parts
        self._functional: FunctionalModel | None = None

    @property
    def model_outputs(self) -> ModelOutputs:
        """The model's outputs, where products are Gauss-Newton ones."""
        assert self.outputs is not None
        return self.outputs

    def reached(self) -> Tree:
        """The inner parameters that the loss depends on.

        Raises:
            ValueError: there are none, and there are weights.
        """
        found = self.graph.reached(self.theta)
        if not found and self.weights.numel():  # else the samples are on other processes
            raise ValueError(UNTOUCHED)
        return {name: self.theta[name] for name in found}

    def is_all_alive(self) -> bool:
        """Whether every operation of the loss takes part in its gradient now."""
        try:
            return self.graph.is_all_alive(self.loss, self._inputs())
        except RuntimeError as error:  # compiled parts can be differentiated only once
            logger.info("no gradient to look at: %s", str(error))
            return True

    def narrowest(self) -> torch.dtype | None:
        """The floating-point type of fewest digits in the loss; ``None`` where nothing shows it."""
        try:
            return self.graph.narrowest(self.loss, self._inputs())
        except RuntimeError as error:  # as in is_all_alive
            logger.info("no types to look at: %s", str(error))
            return None

    def _inputs(self) -> list[Any]:
        return [*GraphInputs(self.theta, self.tables).inputs, self.weights]

    def padding(self, by_rows: Container[str]) -> dict[str, int]:
        """Rows of tables that are padding, which are constants; of tables that are used whole."""
        found = padding_rows(self.parts, self.theta)
        return {name: row for name, row in found.items() if name not in by_rows}

    def functional_model(self) -> FunctionalModel:
        """The model as a function of the values that can be substituted.

        The first call evaluates the loss to find that out.

        Raises:
            RuntimeError: the loss uses a parameter that can't be substituted.
        """
        if self._functional is None:
            # A compiled part would be compiled again to substitute the rows of a table.
            tables = {} if is_compiled(self.parts) else self.tables
            model = FunctionalModel(self.parts, self.theta, tables)
            self._functional = self._substitutable(model)
        return self._functional

    def function(self) -> Function:
        """The inner loss as a function of θ and the weights.

        Raises:
            ValueError: the loss depends on no inner parameter.
            RuntimeError: the loss uses a parameter that can't be substituted.
        """
        model = self.functional_model().only(self.reached())
        return Function(self._objective(model), model.values(), model.rows)

    def forward(self) -> Forward:
        """The model's outputs as a function of θ; errors as for :meth:`function`."""
        model = self.functional_model().only(self.reached())

        def outputs(params: Tree) -> Outputs:
            with self._substituted(model, params):
                return self.model_outputs.evaluated(self.batch, self.weights)[0]

        return Forward(outputs, model.values(), model.rows)

    def _substitutable(self, model: FunctionalModel) -> FunctionalModel:
        """``model``, with those tables as a whole whose look-ups ignore substituted rows.

        Substitution does not see a look-up in a scripted function, by a list of indices or by an
        operator's ``aten`` name, nor one that runs again in a backward pass. Losses may also ask
        for their gradient by the table itself.
        """
        try:
            missed = self._missed(model)
        except Exception as error:
            if not model.tables:
                raise
            logger.info("tables are used as a whole; by rows they raise: %s", str(error))
            missed = list(model.tables)
        if by_rows := [name for name in missed if name in model.tables]:
            kept = {n: table for n, table in model.tables.items() if n not in by_rows}
            model = FunctionalModel(self.parts, model.theta, kept)
            missed = self._missed(model)
        if missed:
            raise RuntimeError(
                f"the losses compute with {some(dict.fromkeys(missed))} itself where another "
                "tensor was put in its place: it is kept in a list, a closure or outside of the "
                "model"
            )
        return model

    def _missed(self, model: FunctionalModel) -> list[str]:
        """The parameters that the loss still depends on when they are substituted."""
        values = new_leaves(model.values())
        with model.at(values), self.isolation.aside():
            loss = self._objective(model)(values, {"weights": self.weights})
            # A checkpointed part runs again here.
            torch.autograd.grad(loss, list(values.values()), allow_unused=True)
        return Graph(loss).reached(self.theta)

    def _objective(self, model: FunctionalModel) -> Callable[[Tree, Tree], Tensor]:
        def inner(params: Tree, hparams: Tree) -> Tensor:
            with self._substituted(model, params):
                return self.evaluate(self.batch, hparams["weights"])

        return inner

    @contextmanager
    def _substituted(self, model: FunctionalModel, params: Tree) -> Iterator[None]:
        # The same dropout mask in every evaluation.
        self.isolation.restore(copies=False)
        # New tensors with the memory of frozen parameters: a pass may assign to p.data a
        # tensor of a transform, and a parameter that held it would crash the process later.
        frozen = [p for p in parameters_of(self.parts).values() if not p.requires_grad]
        constants = {id(p): p.data for p in frozen}
        # Copies of buffers: torch.func can't update captured tensors in place.
        with model.at(params, constants, self.isolation.saved), twice_differentiable():
            yield
