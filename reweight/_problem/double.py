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
from torch import Tensor, nn

from reweight._curvature import Mode, from_graph, with_func
from reweight._problem.inner import InnerProblem
from reweight._problem.isolation import is_compiled, twice_differentiable
from reweight._tables import SubstituteRows, Table, tables_of
from reweight._tensors import Tree, doubled, filled, map_tensors

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
        tables = tables_of(self._model.module, inner.theta)
        # Inner tables that the loss may read, but does not depend on.
        self._idle = {n: Table.unread(t) for n, t in tables.items() if n not in self._model.theta}
        known = (*self._model.theta.values(), *(table.weight for table in self._idle.values()))
        inside = {id(p) for p in known}
        self._others = [p for p in self._model.module.parameters() if id(p) not in inside]

    def too_costly(self) -> str:
        """Why the conversion would cost too much, or ``""``."""
        if is_compiled(self._model.module):
            return "a compiled model would be compiled again for float64"
        values, buffers = self._model.values().values(), self._model.module.buffers()
        size = sum(t.numel() for t in (*values, *self._others, *buffers))
        return f"{size} parameters and buffers would be copied in float64" * (size > _LARGEST)

    def params(self) -> Tree:
        """θ in float64; rows in the place of tables."""
        return {name: p.detach().double() for name, p in self._model.values().items()}

    def padding(self) -> dict[str, int]:
        """Rows of whole tables that are padding: constants, which get no gradient."""
        rows = {
            id(module.weight): module.padding_idx
            for module in self._model.module.modules()
            if isinstance(module, (nn.Embedding, nn.EmbeddingBag))
        }
        model = self._model
        found = {n: rows.get(id(p)) for n, p in model.theta.items() if n not in model.tables}
        return {name: row for name, row in found.items() if row is not None}

    def product(self, mode: Mode, params: Tree, v: Tree) -> Tree:
        """``(θ, v) -> H v`` in this mode."""
        if mode == "func":

            def objective(theta: Tree, hparams: Tree) -> Tensor:
                with self._installed(theta):
                    return self._loss()

            return with_func(objective, params, {}).hvp(v)
        # Installed during the backward passes too: a checkpointed module runs again in them.
        with self._installed(params):
            linearisation = from_graph(self._loss(), params, {})
            entries = linearisation.hvp({n: v[n] for n in linearisation.params})
        return filled((entries.get(name) for name in params), params)

    def evaluate(self, params: Tree) -> tuple[float, Tree]:
        """``θ -> (inner, ∇inner)``."""
        with self._installed(params):
            value = self._loss()
            grads = torch.autograd.grad(value, list(params.values()), allow_unused=True)
        return float(value.detach()), filled(grads, params)

    def _loss(self) -> Tensor:
        self._inner.isolation.rewind()
        batch, weights = self._arguments
        with twice_differentiable():
            return self._inner.evaluate(batch, weights)

    @functools.cached_property
    def _arguments(self) -> tuple[Any, Tensor]:
        return batch_in_double(self._inner.batch), self._inner.weights.detach().double()

    @functools.cached_property
    def _constants(self) -> tuple[dict[int, Tensor], Tree]:
        rows = {name: doubled(table.values()) for name, table in self._idle.items()}
        return {id(p): doubled(p.detach()) for p in self._others}, rows

    @contextmanager
    def _installed(self, params: Tree) -> Iterator[None]:
        others, idle_rows = self._constants
        with (
            self._model.at(params, others, lambda buffer: doubled(buffer.clone())),
            SubstituteRows(self._idle, idle_rows),
        ):
            yield
