"""A model with other values in the place of its inner parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext

from torch import Tensor, nn

from reweight._isolation import swapped
from reweight._replaced import Replaced
from reweight._rows import Table
from reweight._trees import Tree


class Point:
    """Where a model stands, as far as a loss depends on it.

    Args:
        model: is evaluated with other values in the place of its own, and is itself left alone.
        theta: the inner parameters.
        tables: those of which only some rows are.
    """

    def __init__(self, model: nn.Module, theta: Tree, tables: Mapping[str, Table]) -> None:
        self.model = model
        self.theta = theta
        self.tables = {name: tables[name] for name in theta if name in tables}

    def only(self, names: Iterable[str]) -> Point:
        """The same without what is not named."""
        return Point(self.model, {name: self.theta[name] for name in names}, self.tables)

    @property
    def rows(self) -> dict[str, Tensor]:
        """Which rows stand for tables."""
        return {name: table.rows for name, table in self.tables.items()}

    def values(self) -> Tree:
        """Where the model stands: parameters, and rows of tables."""
        return {
            name: self.tables[name].values() if name in self.tables else p
            for name, p in self.theta.items()
        }

    @contextmanager
    def at(
        self,
        values: Tree,
        others: Mapping[int, Tensor] | None = None,
        buffers: Callable[[Tensor], Tensor] | None = None,
    ) -> Iterator[None]:
        """Put the model elsewhere.

        Args:
            values: like :meth:`values`.
            others: for parameters that are not inner, by their ``id``.
            buffers: what the model sees of its buffers.
        """
        whole = {id(p): values[n] for n, p in self.theta.items() if n not in self.tables}
        rows = Replaced(self.tables, values) if self.tables else nullcontext()
        with swapped(self.model, {**(others or {}), **whole}, buffers), rows:
            yield
