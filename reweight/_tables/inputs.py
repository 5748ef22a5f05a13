"""The inputs that a graph is differentiated by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from reweight._tables.table import Table
from reweight._tensors import Tree


class GraphInputs:
    """Parameters, and the outputs of look-ups in the place of embedding tables.

    Attributes:
        params: by name, tables included.
        tables: the entries of ``params`` that are differentiated by the rows that are read.
        inputs: what ``torch.autograd.grad`` takes as ``inputs``.
    """

    def __init__(self, params: Tree, tables: Mapping[str, Table]) -> None:
        self.params = params
        self.tables = {name: tables[name] for name in params if name in tables}
        self.inputs: list[Any] = []
        self._spans: dict[str, slice] = {}
        for name, parameter in params.items():
            first = len(self.inputs)
            self.inputs += self.tables[name].edges if name in self.tables else [parameter]
            self._spans[name] = slice(first, len(self.inputs))

    def reached(self, grads: Sequence[Tensor | None]) -> GraphInputs:
        """Those parameters for which some gradient is not ``None``."""
        params = {
            name: p
            for name, p in self.params.items()
            if any(g is not None for g in grads[self._spans[name]])
        }
        return GraphInputs(params, self.tables)

    def spread(self, v: Tree) -> list[Tensor]:
        """A vector over parameters and rows of tables, as one tensor per input of the graph."""
        along: list[Any] = [None] * len(self.inputs)
        for name, entry in v.items():
            table = self.tables.get(name)
            along[self._spans[name]] = [entry] if table is None else table.read(entry)
        return along

    def collect(self, grads: Sequence[Tensor | None]) -> Tree:
        """The transpose of :meth:`spread`; ``None`` is zero."""
        found = {}
        for name, parameter in self.params.items():
            parts = grads[self._spans[name]]
            if name in self.tables:
                found[name] = self.tables[name].collect(parts)
            else:
                (part,) = parts
                if part is None:
                    part = torch.zeros_like(parameter)
                found[name] = part.to_dense() if part.is_sparse else part
        return found

    def gradient(self, grads: Sequence[Tensor | None]) -> Tree:
        """The gradient over whole parameters: coalesced sparse tensors for tables."""
        found = self.collect(grads)
        return found | {name: table.sparse(found[name]) for name, table in self.tables.items()}
