"""Look-ups that read other values than the table holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from reweight._tables.lookups import INTEGERS, bags, wrapped
from reweight._tables.table import Table, find
from reweight._tensors import Tree

# A table of at most so many times the rows of a look-up is copied for it: to find each row among
# those given takes three to ten times as long. To copy a larger one would cost memory that grows
# with it.
_COPIED = 4


class SubstituteRows(TorchFunctionMode):
    """While this mode is active, look-ups read other values for some rows of some tables.

    The table itself is not changed, so code that reads its shape works. Its other rows are
    constants.

    Args:
        tables: by name.
        values: values of their active rows, ``[r, D]``, by the same names, of any floating-point
            type.
    """

    def __init__(self, tables: Mapping[str, Table], values: Tree) -> None:
        super().__init__()
        self._of = {id(t.weight): _Substituted(t, values[name]) for name, t in tables.items()}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        place = _LOOK_UPS.get(func)
        if place is None:
            return func(*args, **kwargs)
        at, name, look_up = place
        weight = args[at] if len(args) > at else kwargs.get(name)
        if id(weight) not in self._of:
            return func(*args, **kwargs)
        result = look_up(self._of[id(weight)].read, *args, **kwargs)
        return func(*args, **kwargs) if result is None else result


class _Substituted:
    """A table with other values for some of its rows."""

    def __init__(self, table: Table, values: Tensor) -> None:
        self._table, self._values = table, values

    def read(self, index: Tensor, padding_idx: int | None = None) -> Tensor:
        """The rows at ``index``; that of ``padding_idx`` is a constant, the table's own."""
        table, values = self._table, self._values
        if padding_idx is None and len(table.weight) <= _COPIED * index.numel():
            # Not kept for the next look-up: a checkpoint looks up again in a backward pass, where
            # this mode is not active, and would read the table's own rows. It refuses, as it saves
            # one tensor less than with the copy.
            weight = table.weight.detach().to(values.dtype)
            return functional.embedding(index, weight.index_copy(0, table.rows, values))
        others = functional.embedding(index, table.weight.detach()).to(values.dtype)
        if not len(table.rows):
            return others
        at, active = find(index, table.rows)
        if padding_idx is not None:
            active &= index != padding_idx % len(table.weight)
        return torch.where(active.unsqueeze(-1), values[at], others)


_Read = Callable[..., Tensor]


def _embedding(
    read: _Read, input: Tensor, weight: Tensor, padding_idx: int | None = None, *_: Any, **__: Any
) -> Tensor:
    return read(input.long(), padding_idx)


def _embedding_bag(
    read: _Read,
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """The same value by operations that have second derivatives, which the original lacks."""
    if input.dim() == 2:
        offsets = torch.arange(0, input.numel(), max(input.shape[1], 1), device=input.device)
        if not input.numel():
            offsets = torch.zeros(len(input), dtype=torch.long, device=input.device)
    assert offsets is not None  # torch raises without them
    num_bags = len(offsets) - include_last_offset
    index = input.reshape(-1).long()
    bag = bags(offsets.long(), len(index))
    values = read(index, padding_idx)
    real = torch.ones_like(index, dtype=torch.bool)
    if padding_idx is not None:
        real = index != padding_idx % len(weight)
    if mode == "max":
        to = bag.unsqueeze(1).expand_as(values)
        below = values.masked_fill(~real.unsqueeze(1), -torch.inf)
        start = values.new_full((num_bags, values.shape[1]), -torch.inf)
        largest = start.scatter_reduce(0, to, below, "amax")
        return largest.masked_fill(largest == -torch.inf, 0.0)
    if per_sample_weights is not None:
        values = values * per_sample_weights.reshape(-1, 1).to(values.dtype)
    values = values * real.unsqueeze(1)
    total = values.new_zeros(num_bags, values.shape[1]).index_add(0, bag, values)
    if mode == "mean":
        total = total / torch.bincount(bag[real], minlength=num_bags).clamp(min=1).unsqueeze(1)
    return total


def _getitem(read: _Read, table: Tensor, index: Any) -> Tensor | None:
    if not isinstance(index, Tensor) or index.dtype not in INTEGERS:
        return None
    return read(wrapped(index, len(table)))


def _index_select(read: _Read, input: Tensor, dim: int, index: Tensor) -> Tensor | None:
    return read(index.reshape(-1).long()) if dim == 0 else None


# Position and name of the table among a look-up's arguments, and the look-up of other values.
_LOOK_UPS: dict[Any, tuple[int, str, Callable[..., Tensor | None]]] = {
    functional.embedding: (1, "weight", _embedding),
    functional.embedding_bag: (1, "weight", _embedding_bag),
    Tensor.__getitem__: (0, "self", _getitem),
    Tensor.index_select: (0, "self", _index_select),
    torch.index_select: (0, "input", _index_select),
}
