"""The inner problem at other values of θ, written into the parameters themselves.

Whatever holds a parameter follows: a list, a closure, a second module. The values from before are
put back bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from reweight._curvature import Linearisation, Mode, Partial, from_graph, with_func
from reweight._problem.inner import InnerProblem
from reweight._problem.isolation import twice_differentiable
from reweight._tables import Graph, GraphInputs, Table, looked_up, pick
from reweight._tensors import Tree, dense, filled


class InnerInPlace:
    """First and second derivatives of an inner problem anywhere, in its own precision.

    Args:
        inner: the inner problem.
        names: of the parameters that θ consists of; all by default. The others stay as they are.
    """

    def __init__(self, inner: InnerProblem, names: Iterable[str] | None = None) -> None:
        self._inner = inner
        names = inner.theta if names is None else names
        self._theta = {name: inner.theta[name] for name in names}
        self.rows = {n: t.rows for n, t in inner.tables.items() if n in self._theta}
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
        """``(θ, v) -> H v`` in this mode.

        Raises:
            RuntimeError: the rows of a table that are read are others than at the parameters.
        """
        if mode == "func":
            function = self._inner.function()
            known, weights = function.params, {"weights": self._inner.weights}
            found = with_func(function.objective, {n: params[n] for n in known}, weights)
            return self._filled(found, function.rows, v, params)
        with self._at(params), twice_differentiable():
            loss = self._loss(self._inner.weights)
            found = from_graph(loss, self._theta, {}, self._tables(Graph(loss)))
            return self._filled(found, found.rows, v, params)

    def _filled(
        self, found: Linearisation, rows: Mapping[str, Tensor], v: Tree, params: Tree
    ) -> Tree:
        for name in found.params:
            same = name in rows and torch.equal(rows[name], self.rows[name])
            if name in self.rows and not same:
                raise RuntimeError(f"{name} is not read in the rows that the train batch reads")
        product = found.hvp({name: v[name] for name in found.params})
        return filled((product.get(name) for name in params), params)

    def _differentiated(self, params: Tree, hparams: Tree) -> tuple[float, Tree, Partial]:
        weights = hparams.get("weights", self._inner.weights).detach().requires_grad_(True)
        # Around the backward pass too: a checkpointed module runs again in it.
        with self._at(params), twice_differentiable():
            loss = self._loss(weights)
            graph = Graph(loss)
            self._prove(graph)
            inputs = GraphInputs(self._theta, self._tables(graph))
            grads = torch.autograd.grad(loss, [*inputs.inputs, weights], allow_unused=True)
            gradient = inputs.gradient(grads[:-1])
        found = {
            name: pick(entry, self.rows[name]) if name in self.rows else dense(entry)
            for name, entry in gradient.items()
        }
        return float(loss.detach()), found, {name: grads[-1] for name in hparams}

    def _loss(self, weights: Tensor) -> Tensor:
        self._inner.isolation.restore()
        return self._inner.evaluate(self._inner.batch, weights)

    def _tables(self, graph: Graph) -> dict[str, Table]:
        return looked_up(graph, {name: self._theta[name] for name in self.rows})

    def _prove(self, graph: Graph) -> None:
        """Raise where the loss is made of values that were computed before θ was moved."""
        if self._proved:
            return
        old = graph.shared(self._inner.graph)
        if old and graph.leads_to(old, self._theta):
            raise RuntimeError(
                f"the losses use a value of an earlier evaluation again ({old[0].name()}), which "
                "does not follow when parameters are moved: a weight that is computed once and "
                "kept, as a cache does. Compute it inside the losses"
            )
        self._proved = True

    @contextmanager
    def _at(self, params: Tree) -> Iterator[None]:
        before = self.params()
        with self._inner.isolation.aside():
            try:
                self._write(params)
                yield
            finally:
                self._write(before)

    def _write(self, values: Tree) -> None:
        for name, p in self._theta.items():
            # Not seen by version counters: graphs that saved the parameter stay valid.
            if name in self.rows:
                p.data.index_copy_(0, self.rows[name], values[name].detach())
            else:
                p.data.copy_(values[name].detach())
