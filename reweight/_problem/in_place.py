"""The inner problem at other values of θ, written into the parameters themselves.

Whatever holds a parameter follows: a list, a closure, a second module. The values from before are
put back bit for bit.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

from reweight._curvature import Forward, Mode, Outputs, Partial, from_graph, with_func
from reweight._problem.inner import InnerProblem
from reweight._problem.isolation import is_compiled, twice_differentiable
from reweight._tables import Graph, GraphInputs, SubstituteRows, Table, looked_up, pick
from reweight._tensors import Tree, dense, new_leaves

logger = logging.getLogger("reweight")


class _MissedError(Exception):
    """Look-ups ignore the rows that were put in the place of some tables."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(f"look-ups of {names} ignore substituted rows")
        self.names = names


class InnerInPlace:
    """First and second derivatives of an inner problem anywhere, in its own precision.

    Rows of tables are substituted at their look-ups, where that works: a look-up of a padding row
    reads a constant, whatever else moves the row.

    Args:
        inner: the inner problem.
        names: of the parameters that θ consists of. The others stay as they are.
    """

    def __init__(self, inner: InnerProblem, names: Iterable[str]) -> None:
        self._inner = inner
        self._theta = {name: inner.theta[name] for name in names}
        self.rows = {n: t.rows for n, t in inner.tables.items() if n in self._theta}
        # The tables whose look-ups are substituted.
        self._tables = {} if is_compiled(inner.parts) else {n: inner.tables[n] for n in self.rows}
        self._proved = False

    def params(self) -> Tree:
        """θ; rows in the place of tables."""
        return {
            name: pick(p.detach(), self.rows[name]) if name in self.rows else p.detach().clone()
            for name, p in self._theta.items()
        }

    def gradients(self, params: Tree, hparams: Tree) -> tuple[Tree, Partial]:
        """``(θ, weights) -> (∇θ inner, ∂inner/∂weights)``."""
        return self._differentiated(params, hparams)[1:]

    def evaluate(self, params: Tree) -> tuple[float, Tree]:
        """``θ -> (inner, ∇inner)`` at the weights of the inner problem."""
        value, grads, _ = self._differentiated(params, {})
        return value, grads

    def product(self, mode: Mode, params: Tree, v: Tree) -> Tree:
        """``(θ, v) -> H v`` in this mode."""
        if mode == "func":
            function = self._inner.function()
            known, weights = function.params, {"weights": self._inner.weights}
            found = with_func(function.objective, {n: params[n] for n in known}, weights)
            return found.everywhere(v)
        # Around the backward passes too: a checkpointed module runs again in them.
        with self._at(params) as leaves, twice_differentiable():
            loss = self._loss(self._inner.weights)
            return from_graph(loss, leaves, {}, self._looked_up(Graph(loss))).everywhere(v)

    @contextmanager
    def recorded(self, params: Tree) -> Iterator[tuple[Outputs, Tensor, GraphInputs]]:
        """The model's outputs and the loss at θ, with their graph, and what θ is in it."""
        # Around the backward passes too: a checkpointed module runs again in them.
        with self._at(params) as leaves, twice_differentiable():
            outputs, loss = self._outputs()
            yield outputs, loss, GraphInputs(leaves, self._looked_up(Graph(loss)))

    @contextmanager
    def forward(self, params: Tree) -> Iterator[Forward]:
        """The model's outputs as a pure function of θ."""
        found = self._inner.forward()
        yield dataclasses.replace(found, params={name: params[name] for name in found.params})

    def moved(self) -> Forward:
        """The model's outputs at other values of θ, without a graph."""
        params = self.params()
        self.evaluate(params)  # finds out which look-ups can be substituted

        def outputs(theta: Tree) -> Outputs:
            with self._at(theta), twice_differentiable(), torch.no_grad():
                return self._outputs()[0]

        return Forward(outputs, params, self.rows)

    def _differentiated(self, params: Tree, hparams: Tree) -> tuple[float, Tree, Partial]:
        weights = hparams.get("weights", self._inner.weights).detach().requires_grad_(True)
        evaluated = self._evaluated if self._proved else self._proved_by
        value, gradient, by_weights = evaluated(params, weights)
        found = {
            name: pick(entry, self.rows[name])
            if name in self.rows and name not in self._tables
            else dense(entry)
            for name, entry in gradient.items()
        }
        return value, found, dict.fromkeys(hparams, by_weights)

    def _evaluated(self, params: Tree, weights: Tensor) -> tuple[float, Tree, Tensor | None]:
        # Around the backward pass too: a checkpointed module runs again in it.
        with self._at(params) as leaves, twice_differentiable():
            loss = self._loss(weights)
            graph = Graph(loss)
            if not self._proved:
                self._follow(graph)
            inputs = GraphInputs(leaves, self._looked_up(graph))
            grads = torch.autograd.grad(loss, [*inputs.inputs, weights], allow_unused=True)
            return float(loss.detach()), inputs.gradient(grads[:-1]), grads[-1]

    def _proved_by(self, params: Tree, weights: Tensor) -> tuple[float, Tree, Tensor | None]:
        """Evaluate, and see which look-ups can be substituted; other tables move in place."""
        try:
            found = self._evaluated(params, weights)
        except Exception as error:
            if not self._tables:
                raise
            missed = error.names if isinstance(error, _MissedError) else list(self._tables)
            logger.info("%s: moved in place; by rows: %s", missed, str(error))
            self._tables = {n: table for n, table in self._tables.items() if n not in missed}
            return self._proved_by(params, weights)
        self._proved = True
        return found

    def _loss(self, weights: Tensor) -> Tensor:
        self._inner.isolation.restore()
        return self._inner.evaluate(self._inner.batch, weights)

    def _outputs(self) -> tuple[Outputs, Tensor]:
        self._inner.isolation.restore()
        return self._inner.model_outputs.evaluated(self._inner.batch, self._inner.weights)

    def _looked_up(self, graph: Graph) -> dict[str, Table]:
        """Tables that are moved in place, by the rows that this graph reads."""
        tables = {name: self._theta[name] for name in self.rows if name not in self._tables}
        return looked_up(graph, tables)

    def _follow(self, graph: Graph) -> None:
        """Raise where the loss was not made with the values of θ that it was to be made with."""
        old = graph.shared(self._inner.graph)
        if old and graph.leads_to(old, self._inner.theta):
            raise RuntimeError(
                f"the losses use a value of an earlier evaluation again ({old[0].name()}), which "
                "does not follow when parameters are moved: a weight that is computed once and "
                "kept, as a cache does. Compute it inside the losses"
            )
        if missed := graph.reached({name: self._theta[name] for name in self._tables}):
            raise _MissedError(missed)

    @contextmanager
    def _at(self, params: Tree) -> Iterator[Tree]:
        """Evaluate at other values of θ.

        Yields:
            The leaves to differentiate by.
        """
        moved = {name: p for name, p in self._theta.items() if name not in self._tables}
        leaves = new_leaves({name: params[name] for name in self._tables})
        before = self.params()
        rows = SubstituteRows(self._tables, leaves) if self._tables else nullcontext()
        with self._inner.isolation.aside(), rows:
            try:
                self._write(moved, params)
                yield {name: leaves.get(name, p) for name, p in self._theta.items()}
            finally:
                self._write(moved, before)

    def _write(self, moved: Tree, values: Tree) -> None:
        for name, p in moved.items():
            # Not seen by version counters: graphs that saved the parameter stay valid.
            if name in self.rows:
                p.data.index_copy_(0, self.rows[name], values[name].detach())
            else:
                p.data.copy_(values[name].detach())
