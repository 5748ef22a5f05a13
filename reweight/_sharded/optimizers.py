"""Optimizers as they would be if they held plain parameters in the place of sharded ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from reweight._sharded.kinds import is_sharded

# Gives, of a tensor that is sharded as a parameter, what stands for it.
Read = Callable[[Tensor], Tensor]
# A sharded parameter, what stands for it, and how to read what is sharded like it.
Given = tuple[Tensor, nn.Parameter, Read]


def as_read(optimizer: Optimizer, given: Mapping[int, Given]) -> Optimizer:
    """A view of an optimizer with stand-ins in its groups, and their state in its state.

    The optimizer is not changed. The view holds values of now and can't make steps.

    Args:
        optimizer: the optimizer.
        given: by the ``id`` of the sharded parameter.
    """
    # Of the same name, by which second moments are read; without the initialisation, which would
    # register it as an optimizer.
    kind: Any = type(type(optimizer).__name__, (Optimizer,), {})
    view: Optimizer = object.__new__(kind)
    view.defaults = optimizer.defaults
    view.param_groups = [
        {**group, "params": [given[id(p)][1] if id(p) in given else p for p in group["params"]]}
        for group in optimizer.param_groups
    ]
    view.state = _State(optimizer, given)  # type: ignore[assignment]
    return view


class _State(Mapping[Any, Any]):
    """The state of an optimizer by stand-ins; gathered when it is read."""

    def __init__(self, optimizer: Optimizer, given: Mapping[int, Given]) -> None:
        self._state = optimizer.state
        self._of = {id(stand_in): (p, read) for p, stand_in, read in given.values()}
        self._for = {key: stand_in for key, (_, stand_in, _) in given.items()}

    def __getitem__(self, p: Any) -> Any:
        original, read = self._of.get(id(p), (p, None))
        if original not in self._state:  # the optimizer's own dict would make an empty entry
            raise KeyError(p)
        entries = self._state[original]
        return entries if read is None else _Entries(entries, read)

    def __iter__(self) -> Iterator[Any]:
        return (self._for.get(id(p), p) for p in self._state)

    def __len__(self) -> int:
        return len(self._state)


class _Entries(Mapping[str, Any]):
    """The state of one parameter."""

    def __init__(self, entries: Mapping[str, Any], read: Read) -> None:
        self._entries, self._read = entries, read

    def __getitem__(self, key: str) -> Any:
        entry = self._entries[key]
        return self._read(entry) if is_sharded(entry) else entry

    def __contains__(self, key: object) -> bool:  # that of Mapping reads the value
        return key in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
