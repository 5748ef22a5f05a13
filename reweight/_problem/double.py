"""The inner problem in float64.

The model itself is evaluated, with float64 tensors in the place of its own. So of an embedding
table only the rows that the batch reads are converted.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from reweight._curvature import Forward, Mode, Outputs, from_graph, with_func
from reweight._problem.inner import InnerProblem
from reweight._problem.isolation import is_compiled, parameters_of, twice_differentiable
from reweight._tables import Graph, GraphInputs, SubstituteRows, Table, tables_of
from reweight._tensors import (
    InFloat64,
    Tree,
    doubled,
    filled,
    map_tensors,
    moving,
    some,
    velocity,
)

# Parameters and buffers that are converted at most; a few copies of them are needed.
_LARGEST = 20_000_000


def batch_in_double(batch: Any) -> Any:
    """A copy of a batch with its real floating-point tensors in float64."""
    return map_tensors(doubled, batch)


class InnerInDouble:
    """Gradients and Hessian products of an inner problem as functions of θ in float64.

    Args:
        inner: the inner problem.
        names: of the parameters that θ consists of; the others are constants.
    """

    def __init__(self, inner: InnerProblem, names: Iterable[str]) -> None:
        self._inner = inner
        self._model = inner.functional_model().only(names)
        tables = tables_of(inner.parts, inner.theta)
        # Inner tables that the loss may read, but does not depend on.
        self._idle = {n: Table.unread(t) for n, t in tables.items() if n not in self._model.theta}
        known = (*self._model.theta.values(), *(table.weight for table in self._idle.values()))
        inside = {id(p) for p in known}
        self._others = [p for key, p in parameters_of(inner.parts).items() if key not in inside]
        self._proved = False

    def too_costly(self) -> str:
        """Why the conversion would cost too much, or ``""``."""
        if is_compiled(self._inner.parts):
            return "a compiled model would be compiled again for float64"
        buffers = [b for part in self._inner.parts for b in part._buffers.values() if b is not None]
        size = sum(t.numel() for t in (*self._model.values().values(), *self._others, *buffers))
        return f"{size} parameters and buffers would be copied in float64" * (size > _LARGEST)

    @property
    def rows(self) -> dict[str, Tensor]:
        """The rows that stand for tables, by name."""
        return self._model.rows

    def params(self) -> Tree:
        """θ in float64; rows in the place of tables."""
        return {name: p.detach().double() for name, p in self._model.values().items()}

    def product(self, mode: Mode, params: Tree, v: Tree) -> Tree:
        """``(θ, v) -> H v`` in this mode."""
        if mode == "func":

            def objective(theta: Tree, hparams: Tree) -> Tensor:
                with self._installed(theta):
                    return self._loss()

            with InFloat64():
                return with_func(objective, params, {}).hvp(v)
        # Installed during the backward passes too: a checkpointed module runs again in them.
        with self._installed(params), InFloat64():
            return from_graph(self._loss(), params, {}).everywhere(v)

    def value(self, params: Tree) -> float:
        """``θ -> inner``, without a graph."""
        with torch.no_grad(), self._installed(params), InFloat64():
            return float(self._loss())

    def tangent(self, params: Tree, v: Tree) -> float:
        """``(θ, v) -> ⟨∇inner, v⟩`` by forward mode.

        Raises:
            RuntimeError: an operation has no forward-mode derivative.
        """
        with moving(params, v) as values, self._installed(values), InFloat64():
            return float(velocity(self._loss()))

    def evaluate(self, params: Tree) -> tuple[float, Tree]:
        """``θ -> (inner, ∇inner)``.

        Raises:
            RuntimeError: the loss uses a parameter that can't be substituted.
            TypeError: a part of the loss is rounded to less than float64.
        """
        with self._installed(params), InFloat64() as precision:
            value = self._loss()
            if not self._proved:
                self._prove(Graph(value))
            grads = torch.autograd.grad(value, list(params.values()), allow_unused=True)
        if precision.rounded_to is not None:
            raise TypeError(f"a part of the loss is rounded to {precision.rounded_to}")
        return float(value.detach()), filled(grads, params)

    @contextmanager
    def recorded(self, params: Tree) -> Iterator[tuple[Outputs, Tensor, GraphInputs]]:
        """The model's outputs and the loss at θ, with their graph, and what θ is in it."""
        with self._installed(params), InFloat64():
            yield *self._outputs(), GraphInputs(params, {})

    @contextmanager
    def forward(self, params: Tree) -> Iterator[Forward]:
        """The model's outputs as a pure function of θ, while the context is open."""

        def outputs(theta: Tree) -> Outputs:
            with self._installed(theta):
                return self._outputs()[0]

        with InFloat64():
            yield Forward(outputs, params)

    def _prove(self, graph: Graph) -> None:
        """Raise where the loss depends on a parameter that was to be substituted."""
        if missed := graph.reached(self._inner.theta):
            names = some(dict.fromkeys(missed))
            raise RuntimeError(f"the losses compute with {names} itself, in its own type")
        self._proved = True

    def _loss(self) -> Tensor:
        with twice_differentiable():
            return self._inner.evaluate(*self._arguments())

    def _outputs(self) -> tuple[Outputs, Tensor]:
        with twice_differentiable():
            return self._inner.model_outputs.evaluated(*self._arguments())

    def _arguments(self) -> tuple[Any, Tensor]:
        # A new copy of the batch: a pass may write into it.
        return batch_in_double(self._inner.batch), self._inner.weights.detach().double()

    @functools.cached_property
    def _constants(self) -> tuple[dict[int, Tensor], Tree]:
        rows = {name: doubled(table.values()) for name, table in self._idle.items()}
        return {id(p): doubled(p.detach()) for p in self._others}, rows

    def _fresh_constants(self) -> dict[int, Tensor]:
        """Constants, with new copies of those that a pass writes into."""
        isolation, others = self._inner.isolation, self._constants[0]
        copies = {id(p): others[id(p)].clone() for p in self._others if isolation.writes_into(p)}
        return {**others, **copies}

    @contextmanager
    def _installed(self, params: Tree) -> Iterator[None]:
        isolation = self._inner.isolation
        with isolation.aside():
            isolation.restore(copies=False)
            others, idle_rows = self._fresh_constants(), self._constants[1]
            with (
                self._model.at(params, others, lambda buffer: doubled(buffer.clone())),
                SubstituteRows(self._idle, idle_rows),
            ):
                yield
