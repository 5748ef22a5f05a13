"""Embedding tables of which a batch reads a few rows.

A row that is not looked up has a zero row and column in the Hessian and no mixed derivative, so a
table can be replaced by the rows that are. The recorded graph of a loss tells them: it holds every
look-up with its indices, and a table that nothing else touches need not be differentiated by at
all. What the looked-up rows feed is, and a look-up is a linear map that can be applied, and
transposed, by hand. So nothing of the table's size is ever made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node

from reweight._graph import consumers
from reweight._trees import Tree

INTEGERS = (torch.int64, torch.int32)
_SUM, _MEAN = 0, 1  # of an EmbeddingBag, as its node has them


@dataclass(frozen=True)
class _LookUp:
    """One operation that reads rows: ``out[to[j]] += factor[j] · table[row[j]]``.

    Attributes:
        node: of the operation, in the graph.
        shape: of its output, whose leading dimensions count as one for ``to``.
        row: ``[n]``, of the table. Rows of padding, which are constants, are left out.
        to: ``[n]``, of the output; ``None``: its own row for each entry.
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
        """The output, for these values of the active rows."""
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
class _Largest:
    """The look-up of an EmbeddingBag that keeps the largest of its bag, column by column.

    Attributes:
        row: ``[B, D]``, the row that each entry of the output was read from.
        filled: ``[B, 1]``, False for empty bags, whose output is the constant 0.
    """

    node: Node
    row: Tensor
    filled: Tensor
    linear: bool = True

    def read(self, rows: Tensor, at: Tensor) -> Tensor:
        return rows.gather(0, at.view(self.row.shape)) * self.filled

    def collect(self, output: Tensor, rows: Tensor, at: Tensor) -> None:
        rows.scatter_add_(0, at.view(self.row.shape), output * self.filled)


@dataclass(frozen=True)
class Table:
    """The rows of one table that a graph reads, and where it does.

    Attributes:
        weight: the table, ``[V, D]``.
        rows: those that are read, ``[r]``, each once and in order.
        linear: whether all that is read is linear in the table and in nothing else.
    """

    weight: Tensor
    rows: Tensor
    linear: bool
    _look_ups: tuple[_LookUp | _Largest, ...]
    _at: tuple[Tensor, ...]

    @classmethod
    def unread(cls, weight: Tensor) -> Table:
        """None of its rows."""
        return cls(weight, torch.empty(0, dtype=torch.long, device=weight.device), True, (), ())

    @property
    def edges(self) -> list[GradientEdge]:
        """The outputs of the look-ups, to differentiate by."""
        return [GradientEdge(look_up.node, 0) for look_up in self._look_ups]

    def values(self) -> Tensor:
        """The rows, ``[r, D]``."""
        return self.weight.detach().index_select(0, self.rows)

    def sparse(self, values: Tensor) -> Tensor:
        """A tensor of the table's shape with these rows, and zero in all others."""
        shape = self.weight.shape
        index = self.rows.unsqueeze(0)
        return torch.sparse_coo_tensor(
            index, values, shape, is_coalesced=True, check_invariants=False
        )

    def read(self, values: Tensor) -> list[Tensor]:
        """The outputs of the look-ups, if the rows were ``values``."""
        pairs = zip(self._look_ups, self._at, strict=True)
        return [look_up.read(values, at) for look_up, at in pairs]

    def collect(self, outputs: Iterable[Tensor | None]) -> Tensor:
        """The transpose of :meth:`read`; ``None`` is zero."""
        values = self.weight.new_zeros(len(self.rows), self.weight.shape[1], requires_grad=False)
        for look_up, at, output in zip(self._look_ups, self._at, outputs, strict=True):
            if output is not None:
                look_up.collect(output.to(values.dtype), values, at)
        return values


def tables_of(model: nn.Module, params: Tree) -> Tree:
    """The entries of ``params`` that are weights of embeddings."""
    weights = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag))
    }
    return {name: p for name, p in params.items() if id(p) in weights}


def looked_up(loss: Tensor, tables: Tree) -> dict[str, Table]:
    """Those of ``tables`` that ``loss`` uses by look-ups only, with what it reads of them.

    One that is used as a whole too (a softmax over all items, ``weight.sum()``, a compiled part
    that does not show its insides) is left out; of one that is not used, no row is read.
    """
    if not tables:
        return {}
    uses = consumers(loss, tables)
    found = {}
    for name, nodes in uses.items():
        if not nodes:
            found[name] = Table.unread(tables[name])
            continue
        look_ups = [_look_up(node, tables[name]) for node in nodes]
        known = tuple(look_up for look_up in look_ups if look_up is not None)
        if len(known) == len(nodes):
            found[name] = _table(tables[name], known)
    return found


def _table(weight: Tensor, look_ups: tuple[_LookUp | _Largest, ...]) -> Table:
    wanted = [look_up.row.reshape(-1) for look_up in look_ups]
    rows, at = torch.unique(torch.cat(wanted), return_inverse=True)
    parts = torch.split(at, [len(part) for part in wanted])
    return Table(weight, rows, all(x.linear for x in look_ups), look_ups, parts)


def _look_up(node: Node, weight: Tensor) -> _LookUp | _Largest | None:
    """What an operation on a table reads; ``None`` if it may use all of it."""
    reader = _READERS.get(node.name())
    return None if reader is None else reader(node, weight)


def _of_embedding(node: Any, weight: Tensor) -> _LookUp | None:
    if node._saved_scale_grad_by_freq:
        return None  # its gradients are none
    index = node._saved_indices
    row, shape = index.reshape(-1).long(), (*index.shape, weight.shape[1])
    kept = _not_padding(row, node, weight)
    if kept is None:
        return _LookUp(node, shape, row)
    to = kept.nonzero().squeeze(1)
    return _LookUp(node, shape, row[to], to)


def _of_bag(node: Any, weight: Tensor) -> _LookUp | _Largest | None:
    if node._saved_scale_grad_by_freq:
        return None
    row, num_bags = node._saved_indices.long(), node._saved_result2.numel()
    if node._saved_mode not in (_SUM, _MEAN):
        largest = node._saved_result3.long()
        filled = (node._saved_result2 > 0).unsqueeze(1)
        return _Largest(node, torch.where(filled, largest, 0), filled)
    offsets = node._saved_offsets
    if len(offsets) > num_bags and int(offsets[-1]) != len(row):
        return None  # torch has entries beyond the last offset in no bag, or in the last one
    to = bags(offsets, len(row))
    factor = node._saved_per_sample_weights
    linear = len(node.next_functions) < 2 or node.next_functions[1][0] is None
    factor = None if factor is None else factor.detach()
    kept = _not_padding(row, node, weight)
    if kept is not None:
        row, to = row[kept], to[kept]
        factor = None if factor is None else factor[kept]
    if node._saved_mode == _MEAN:
        factor = 1.0 / torch.bincount(to, minlength=num_bags).to(weight.dtype)[to]
    return _LookUp(node, (num_bags, weight.shape[1]), row, to, factor, linear)


def _of_index(node: Any, weight: Tensor) -> _LookUp | None:
    indices = node._saved_indices
    if len(indices) != 1 or indices[0] is None or indices[0].dtype not in INTEGERS:
        return None
    index = wrapped(indices[0], len(weight))
    return _LookUp(node, (*index.shape, weight.shape[1]), index.reshape(-1))


def _of_index_select(node: Any, weight: Tensor) -> _LookUp | None:
    if node._saved_dim != 0:
        return None
    row = node._saved_index.reshape(-1).long()
    return _LookUp(node, (len(row), weight.shape[1]), row)


_READERS: dict[str, Callable[[Any, Tensor], _LookUp | _Largest | None]] = {
    "EmbeddingBackward0": _of_embedding,
    "EmbeddingBagBackward0": _of_bag,
    "IndexBackward0": _of_index,
    "IndexSelectBackward0": _of_index_select,
}


def _not_padding(row: Tensor, node: Any, weight: Tensor) -> Tensor | None:
    """Which entries are no padding; ``None`` if padding is not a thing here."""
    padding = node._saved_padding_idx  # wraps around where there is none
    return row != padding if 0 <= padding < weight.shape[0] else None


def bags(offsets: Tensor, length: int) -> Tensor:
    """The bag of each entry."""
    entries = torch.arange(length, device=offsets.device, dtype=offsets.dtype)
    return torch.searchsorted(offsets, entries, right=True) - 1


def wrapped(index: Tensor, length: int) -> Tensor:
    """Indices in which those below zero count from the end, as ones that do not."""
    index = index.long()
    return torch.where(index < 0, index + length, index)


def find(wanted: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Where each wanted row stands among ``rows``, sorted and not empty, and whether it does."""
    at = torch.searchsorted(rows, wanted.contiguous()).clamp(max=len(rows) - 1)
    return at, rows[at] == wanted


def pick(x: Tensor, rows: Tensor) -> Tensor:
    """Some rows of a dense tensor, or of a sparse gradient in which each row stands once."""
    if not x.is_sparse:
        return x.index_select(0, rows)
    index, values = x._indices()[0], x._values()
    if not len(index):
        return values.new_zeros(len(rows), *values.shape[1:])
    at, held = find(rows, index)
    return values.index_select(0, at) * held.unsqueeze(1)
