"""Where a graph is differentiated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from reweight._rows import Table
from reweight._trees import Tree, dense


class Places:
    """Parameters, and for tables the outputs of their look-ups.

    Attributes:
        params: by name, tables included.
        tables: those of ``params`` that are differentiated by what is read of them.
        inputs: what ``torch.autograd.grad`` takes.
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

    def reached(self, grads: Sequence[Tensor | None]) -> Places:
        """Those of which some gradient is there."""
        params = {
            name: p
            for name, p in self.params.items()
            if any(g is not None for g in grads[self._spans[name]])
        }
        return Places(params, self.tables)

    def spread(self, v: Tree) -> list[Tensor]:
        """A vector over parameters and rows of tables, as one at each of their places."""
        along: list[Any] = [None] * len(self.inputs)
        for name, entry in v.items():
            table = self.tables.get(name)
            along[self._spans[name]] = [entry] if table is None else table.read(entry)
        return along

    def collect(self, at: Sequence[Tensor | None]) -> Tree:
        """The transpose of :meth:`spread`; ``None`` is zero."""
        found = {}
        for name, parameter in self.params.items():
            parts = at[self._spans[name]]
            if name in self.tables:
                found[name] = self.tables[name].collect(parts)
            else:
                (part,) = parts
                found[name] = torch.zeros_like(parameter) if part is None else dense(part)
        return found

    def gradient(self, at: Sequence[Tensor | None]) -> Tree:
        """The same over whole parameters: sparse for tables, each row once."""
        found = self.collect(at)
        return found | {name: table.sparse(found[name]) for name, table in self.tables.items()}
