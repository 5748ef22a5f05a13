"""A model as a function of its parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

from torch import Tensor, nn

from reweight._tables import SubstituteRows, Table
from reweight._tensors import Tree


class FunctionalModel:
    """A model that can be evaluated with other tensors in the place of its inner parameters.

    Args:
        parts: every module that the losses use. They get their own tensors back.
        theta: the inner parameters.
        tables: the tables among them that are represented by some of their rows.
    """

    def __init__(
        self, parts: Sequence[nn.Module], theta: Tree, tables: Mapping[str, Table]
    ) -> None:
        self.parts = parts
        self.theta = theta
        self.tables = {name: tables[name] for name in theta if name in tables}

    def only(self, names: Iterable[str]) -> FunctionalModel:
        """The same, restricted to the named parameters."""
        return FunctionalModel(self.parts, {name: self.theta[name] for name in names}, self.tables)

    @property
    def rows(self) -> dict[str, Tensor]:
        """The rows that stand for tables, by name."""
        return {name: table.rows for name, table in self.tables.items()}

    def values(self) -> Tree:
        """The parameters, and for tables the values of their rows."""
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
        """Let the model use other values while the context is open.

        Args:
            values: with the structure of :meth:`values`.
            others: tensors in the place of further parameters, by the parameter's ``id``.
            buffers: maps a buffer to the tensor that the model uses in its place.
        """
        whole = {id(p): values[n] for n, p in self.theta.items() if n not in self.tables}
        rows = SubstituteRows(self.tables, values) if self.tables else nullcontext()
        with swapped(self.parts, {**(others or {}), **whole}, buffers), rows:
            yield


@contextmanager
def swapped(
    parts: Iterable[nn.Module],
    tensors: Mapping[int, Tensor],
    buffers: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[None]:
    """Run with other tensors in the place of parameters, given by the parameter's ``id``.

    Identity, not name, selects a parameter: a parameter or submodule that is reachable by several
    names is replaced everywhere and put back everywhere. (``torch.func.functional_call`` loses the
    parameters of a submodule that has two names.) ``buffers`` maps each buffer to the tensor that
    the module uses instead: a copy, which in-place updates inside ``torch.func`` need, or a tensor
    of another type.
    """
    undo: list[tuple[dict[str, Tensor | None], str, Tensor]] = []
    try:
        for part in parts:
            for name, parameter in part._parameters.items():
                if parameter is not None and id(parameter) in tensors:
                    undo.append((part._parameters, name, parameter))  # type: ignore[arg-type]
            for name, buffer in part._buffers.items():
                if buffer is not None and (buffers is not None or id(buffer) in tensors):
                    undo.append((part._buffers, name, buffer))
        for slots, name, tensor in undo:
            if id(tensor) in tensors:
                slots[name] = tensors[id(tensor)]
            elif buffers is not None:
                slots[name] = buffers(tensor)
        yield
    finally:
        for slots, name, tensor in undo:
            slots[name] = tensor
