"""The rows of an embedding table that one batch reads.

A row that is not looked up has a zero row and column in the Hessian and no mixed derivative, so
the rows that are looked up can stand for the table. A look-up is linear in the table: this module
applies that linear map and its transpose to the rows, so nothing of the table's size is made.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node

from reweight._tensors import Tree


@dataclass(frozen=True)
class LookUp:
    """One operation that reads rows: ``out[to[j]] += factor[j] · table[row[j]]``.

    Attributes:
        node: the operation in the graph.
        shape: shape of its output; the leading dimensions count as one for ``to``.
        row: ``[n]``, rows of the table. Padding rows, which are constants, are left out.
        to: ``[n]``, rows of the output; ``None``: entry ``j`` goes to row ``j``.
        factor: ``[n]``; ``None``: ones.
        linear: whether the factors are constants.
    """

    node: Node
    shape: tuple[int, ...]
    row: Tensor
    to: Tensor | None = None
    factor: Tensor | None = None
    linear: bool = True

    def read(self, rows: Tensor, at: Tensor) -> Tensor:
        """The output for the given values of the active rows."""
        read = rows.index_select(0, at)
        if self.factor is not None:
            read = read * self.factor.unsqueeze(1)
        if self.to is not None:
            length = torch.Size(self.shape[:-1]).numel()
            read = rows.new_zeros(length, rows.shape[1]).index_add_(0, self.to, read)
        return read.view(self.shape)

    def collect(self, output: Tensor, rows: Tensor, at: Tensor) -> None:
        """Add the transposed map of ``output`` to ``rows``."""
        read = output.reshape(-1, rows.shape[1])
        if self.to is not None:
            read = read.index_select(0, self.to)
        if self.factor is not None:
            read = read * self.factor.unsqueeze(1)
        rows.index_add_(0, at, read)


@dataclass(frozen=True)
class MaximumLookUp:
    """The look-up of an ``EmbeddingBag(mode="max")``: the largest entry of each bag, per column.

    Attributes:
        node: the operation in the graph.
        row: ``[B, D]``, the row that each entry of the output was read from.
        filled: ``[B, 1]``, False for empty bags, whose output is the constant 0.
        linear: True; which row an entry comes from is held fixed.
    """

    node: Node
    row: Tensor
    filled: Tensor
    linear: bool = True

    def read(self, rows: Tensor, at: Tensor) -> Tensor:
        """See :meth:`LookUp.read`."""
        return rows.gather(0, at.view(self.row.shape)) * self.filled

    def collect(self, output: Tensor, rows: Tensor, at: Tensor) -> None:
        """See :meth:`LookUp.collect`."""
        rows.scatter_add_(0, at.view(self.row.shape), output * self.filled)


@dataclass(frozen=True)
class Table:
    """The rows of one table that a graph reads, and the operations that read them.

    Attributes:
        weight: the table, ``[V, D]``.
        rows: the rows that are read, ``[r]``, each once, in ascending order.
        linear: whether every look-up is linear in the table and has constant factors.
    """

    weight: Tensor
    rows: Tensor
    linear: bool
    _look_ups: tuple[LookUp | MaximumLookUp, ...]
    _at: tuple[Tensor, ...]

    @classmethod
    def of(cls, weight: Tensor, look_ups: tuple[LookUp | MaximumLookUp, ...]) -> Table:
        """The rows that these look-ups read."""
        wanted = [look_up.row.reshape(-1) for look_up in look_ups]
        rows, at = torch.unique(torch.cat(wanted), return_inverse=True)
        parts = torch.split(at, [len(part) for part in wanted])
        return cls(weight, rows, all(x.linear for x in look_ups), look_ups, parts)

    @classmethod
    def at(cls, weight: Tensor, rows: Tensor) -> Table:
        """Some rows, ``[r]`` in ascending order, whatever reads them."""
        return cls(weight, rows, True, (), ())

    @classmethod
    def unread(cls, weight: Tensor) -> Table:
        """None of the table's rows."""
        return cls.at(weight, torch.empty(0, dtype=torch.long, device=weight.device))

    @property
    def edges(self) -> list[GradientEdge]:
        """The outputs of the look-ups, as ``torch.autograd.grad`` takes them."""
        return [GradientEdge(look_up.node, 0) for look_up in self._look_ups]

    @property
    def look_ups(self) -> list[tuple[LookUp | MaximumLookUp, Tensor]]:
        """The operations that read rows, each with the positions of these in :attr:`rows`."""
        return list(zip(self._look_ups, self._at, strict=True))

    def values(self) -> Tensor:
        """The rows, ``[r, D]``."""
        return self.weight.detach().index_select(0, self.rows)

    def sparse(self, values: Tensor) -> Tensor:
        """A sparse tensor of the table's shape with these rows, and zero in all others."""
        shape = self.weight.shape
        index = self.rows.unsqueeze(0)
        return torch.sparse_coo_tensor(
            index, values, shape, is_coalesced=True, check_invariants=False
        )

    def read(self, values: Tensor) -> list[Tensor]:
        """The outputs of the look-ups if the rows were ``values``."""
        pairs = zip(self._look_ups, self._at, strict=True)
        return [look_up.read(values, at) for look_up, at in pairs]

    def collect(self, outputs: Iterable[Tensor | None]) -> Tensor:
        """The transpose of :meth:`read`; ``None`` is zero."""
        values = self.weight.new_zeros(len(self.rows), self.weight.shape[1], requires_grad=False)
        for look_up, at, output in zip(self._look_ups, self._at, outputs, strict=True):
            if output is not None:
                look_up.collect(output.to(values.dtype), values, at)
        return values


def tables_of(parts: Iterable[nn.Module], params: Tree) -> Tree:
    """The entries of ``params`` that are weights of embedding modules among ``parts``."""
    # Not module.weight, which a parametrization computes anew, with its side effects.
    weights = {
        id(module._parameters.get("weight"))
        for module in parts
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag))
    }
    return {name: p for name, p in params.items() if id(p) in weights}


def find(wanted: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Positions of ``wanted`` in ``rows`` (ascending, not empty), and whether each is there."""
    at = torch.searchsorted(rows, wanted.contiguous()).clamp(max=len(rows) - 1)
    return at, rows[at] == wanted


def pick(x: Tensor, rows: Tensor) -> Tensor:
    """Some rows of a dense tensor, or of a coalesced sparse gradient."""
    if not x.is_sparse:
        return x.index_select(0, rows)
    index, values = x._indices()[0], x._values()
    if not len(index):
        return values.new_zeros(len(rows), *values.shape[1:])
    at, held = find(rows, index)
    return values.index_select(0, at) * held.unsqueeze(1)
