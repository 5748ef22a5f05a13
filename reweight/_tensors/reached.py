"""Everything that can be reached inside a value."""

from __future__ import annotations

from collections.abc import Iterable
from graphlib import TopologicalSorter
from typing import Any, NamedTuple

from torch import Tensor

from reweight._tensors.containers import ATOMS, Layout, layout_of


class _Container(NamedTuple):
    """A container, and what it holds."""

    value: Any
    layout: Layout
    items: list[Any]
    attributes: list[Any]


class Reached:
    """The tensors and the containers inside a value, which is only read.

    Nothing here recurses, so a value may hold itself and be nested to any depth.

    Attributes:
        value: the value.
        tensors: by their ids, in the order in which a reader meets them.
    """

    def __init__(self, value: Any) -> None:
        self.value = value
        self.tensors: dict[int, Tensor] = {}
        self._containers: dict[int, _Container] = {}
        waiting = [value]
        while waiting:
            entry = waiting.pop()
            cls: Any = type(entry)
            if cls in ATOMS or id(entry) in self.tensors or id(entry) in self._containers:
                continue
            if issubclass(cls, Tensor):
                self.tensors[id(entry)] = entry
            elif (layout := layout_of(cls)) is not None:
                items, attributes = list(layout.items.read(entry)), layout.attributes(entry)
                self._containers[id(entry)] = _Container(entry, layout, items, attributes)
                if not layout.items.referred_to:
                    waiting += reversed(attributes)
                    waiting += reversed(items)

    def with_others(self, others: dict[int, Tensor], uncopied: list[Any]) -> Any:
        """A copy of the value with other tensors, which are given by the ids of those they replace.

        Containers in which nothing changes are not copied. Those that can't be copied stand in the
        copy themselves, and are added to ``uncopied``.
        """
        copies: dict[int, Any] = dict(others)

        def swap(entry: Any) -> Any:
            return copies.get(id(entry), entry)

        def keep(key: int, copied: Any) -> None:
            copies[key] = changed[key].value if copied is None else copied
            if copied is None:
                uncopied.append(changed[key].value)

        changed = self._holders(others)
        made = {key: one for key, one in changed.items() if one.layout.items.make}
        for key, one in changed.items():
            if key not in made:
                keep(key, one.layout.empty(one.value))
        for key in _innermost_first(made):
            one = made[key]
            keep(key, one.layout.made(one.value, list(map(swap, one.items))))
        # Sets are filled last: the entries that they take need a hash, and so their own entries.
        for key, one in sorted(changed.items(), key=lambda pair: pair[1].layout.kind is set):
            if copies[key] is not one.value:
                one.layout.fill(copies[key], one.value, swap)
        return swap(self.value)

    def _holders(self, inside: Iterable[int]) -> dict[int, _Container]:
        """The containers in which one of these lies, at any depth, in the order of a reader."""
        holders: dict[int, list[int]] = {}
        for key, one in self._containers.items():
            for entry in (*one.items, *one.attributes):
                holders.setdefault(id(entry), []).append(key)
        waiting, found = list(inside), set[int]()
        while waiting:
            for key in holders.get(waiting.pop(), ()):
                if key not in found:
                    found.add(key)
                    waiting.append(key)
        return {key: one for key, one in self._containers.items() if key in found}


def _innermost_first(made: dict[int, _Container]) -> Iterable[int]:
    """Containers that are made of their items, each after the ones among its items."""
    if not made:
        return ()
    within = {k: [id(item) for item in one.items if id(item) in made] for k, one in made.items()}
    return TopologicalSorter(within).static_order()
