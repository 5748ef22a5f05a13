"""The look-ups that the recorded graph of a loss holds.

Autograd saves the indices of every look-up in its node. So the graph of one evaluation tells which
rows of a table the loss reads, and whether anything else uses the table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

from reweight._tables.graph import Graph
from reweight._tables.table import LookUp, MaximumLookUp, Table
from reweight._tensors import Tree

INTEGERS = (torch.int64, torch.int32)
_SUM, _MEAN = 0, 1  # modes of an EmbeddingBag, as its node stores them


def looked_up(graph: Graph, tables: Tree) -> dict[str, Table]:
    """The entries of ``tables`` that a loss uses by look-ups only, with the rows it reads.

    A table that is also used as a whole (a softmax over all items, ``weight.sum()``, a compiled
    part whose operations the graph does not show) is left out. Of a table that the loss does not
    use, no row is read.
    """
    if not tables:
        return {}
    uses = graph.consumers(tables)
    found = {}
    for name, nodes in uses.items():
        if not nodes:
            found[name] = Table.unread(tables[name])
            continue
        look_ups = [_look_up(node, tables[name]) for node in nodes]
        known = tuple(look_up for look_up in look_ups if look_up is not None)
        if len(known) == len(nodes):
            found[name] = Table.of(tables[name], known)
    return found


def _look_up(node: Node, weight: Tensor) -> LookUp | MaximumLookUp | None:
    """What an operation on a table reads; ``None`` if it may use all of the table."""
    reader = _READERS.get(node.name())
    return None if reader is None else reader(node, weight)


def _of_embedding(node: Any, weight: Tensor) -> LookUp | None:
    if node._saved_scale_grad_by_freq:
        return None  # its gradient is not the derivative of the loss
    index = node._saved_indices
    row, shape = index.reshape(-1).long(), (*index.shape, weight.shape[1])
    kept = _not_padding(row, node, weight)
    if kept is None:
        return LookUp(node, shape, row)
    to = kept.nonzero().squeeze(1)
    return LookUp(node, shape, row[to], to)


def _of_bag(node: Any, weight: Tensor) -> LookUp | MaximumLookUp | None:
    if node._saved_scale_grad_by_freq:
        return None
    row, num_bags = node._saved_indices.long(), node._saved_result2.numel()
    if node._saved_mode not in (_SUM, _MEAN):
        largest = node._saved_result3.long()
        filled = (node._saved_result2 > 0).unsqueeze(1)
        return MaximumLookUp(node, torch.where(filled, largest, 0), filled)
    offsets = node._saved_offsets
    if len(offsets) > num_bags and int(offsets[-1]) != len(row):
        return None  # versions of torch differ on entries beyond the last offset
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
    return LookUp(node, (num_bags, weight.shape[1]), row, to, factor, linear)


def _of_index(node: Any, weight: Tensor) -> LookUp | None:
    indices = node._saved_indices
    if len(indices) != 1 or indices[0] is None or indices[0].dtype not in INTEGERS:
        return None
    index = wrapped(indices[0], len(weight))
    return LookUp(node, (*index.shape, weight.shape[1]), index.reshape(-1))


def _of_index_select(node: Any, weight: Tensor) -> LookUp | None:
    if node._saved_dim != 0:
        return None
    row = node._saved_index.reshape(-1).long()
    return LookUp(node, (len(row), weight.shape[1]), row)


_READERS: dict[str, Callable[[Any, Tensor], LookUp | MaximumLookUp | None]] = {
    "EmbeddingBackward0": _of_embedding,
    "EmbeddingBagBackward0": _of_bag,
    "IndexBackward0": _of_index,
    "IndexSelectBackward0": _of_index_select,
}


def _not_padding(row: Tensor, node: Any, weight: Tensor) -> Tensor | None:
    """Which entries are not padding; ``None`` if the look-up has no padding index."""
    padding = node._saved_padding_idx  # out of range where there is none
    return row != padding if 0 <= padding < weight.shape[0] else None


def bags(offsets: Tensor, length: int) -> Tensor:
    """The bag of each of ``length`` entries."""
    entries = torch.arange(length, device=offsets.device, dtype=offsets.dtype)
    return torch.searchsorted(offsets, entries, right=True) - 1


def wrapped(index: Tensor, length: int) -> Tensor:
    """Indices from 0 on: those below zero count from the end."""
    index = index.long()
    return torch.where(index < 0, index + length, index)
