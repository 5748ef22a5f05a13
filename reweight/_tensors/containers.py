"""How the instances of a class hold what is inside them, and how a copy with other entries is made.

Entries are read and written below the class: no property, no ``__init__``, ``__copy__``,
``update`` or ``__setattr__`` of its own runs. So a frozen dataclass, a dict that refuses
``update()`` and a mapping whose constructor needs a batch size are copied like any other object.
"""

from __future__ import annotations

import copy
import enum
import functools
import struct
import types
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from reweight._tensors.items import ITEMS, OF_A_MAPPING, Items

# Classes of values that hold nothing, and are met often.
ATOMS = frozenset(
    (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)
)

# Code, and what is known by its identity or by the state that it changes: no data of a batch.
_WHOLE = (
    type,
    types.ModuleType,
    types.FunctionType,
    functools.partial,
    enum.Enum,
    np.ndarray,
    nn.Module,
    Optimizer,
)


@dataclass(frozen=True)
class Layout:
    """Where the instances of a class hold their entries.

    Attributes:
        kind: the built-in class that they extend.
        items: how they hold the items of ``kind``.
        own: the descriptor of ``__dict__``, if they have one.
        slots: the descriptors of ``__slots__``.
        is_complete: whether items and attributes are all that they hold, so that ``kind.__new__``
            makes one that lacks nothing. Otherwise a base class is written in C.
        is_bare_tuple: whether they are tuples and no more, as named tuples are.
    """

    kind: Any
    items: Items
    own: Any
    slots: tuple[Any, ...]
    is_complete: bool
    is_bare_tuple: bool

    def attributes(self, value: Any) -> list[Any]:
        """The values of its attributes, except those that properties compute."""
        own = [] if self.own is None else list(dict.values(self._own(value)))
        return own + [entry for _, entry in self._filled_slots(value)] if self.slots else own

    def empty(self, value: Any) -> Any:
        """A new instance for :meth:`fill`, or None where none can be made."""
        cls = type(value)
        if hasattr(cls, "__del__"):
            return None  # it owns a resource, which a copy would give back a second time
        if self.is_complete:
            with suppress(TypeError):  # raised where a base class has a __new__ written in C
                return self.kind.__new__(cls)
        try:
            new = copy.copy(value)
        except Exception:  # whatever a class raises that can't be copied
            return None
        if type(new) is not cls or new is value:
            return None
        return None if self.own and self._own(new) is self._own(value) else new

    def made(self, value: Any, items: list[Any]) -> Any:
        """A new instance of these items, or None where none can be made."""
        assert self.items.make is not None  # the caller asks whether there is one
        try:
            return self.items.make(value, items)
        except Exception:  # whatever a constructor raises that wants more than items
            return None

    def fill(self, new: Any, value: Any, swap: Callable[[Any], Any]) -> None:
        """Give a new instance the entries of ``value``, each replaced by ``swap``."""
        if self.items.fill is not None:
            self.items.fill(new, value, map(swap, self.items.read(value)))
        if self.own is not None:
            own = self._own(value)
            if own is value:  # a dict whose attributes are its items
                self.own.__set__(new, new)
            else:
                self._own(new).update({name: swap(entry) for name, entry in dict.items(own)})
        for slot, entry in self._filled_slots(value):
            slot.__set__(new, swap(entry))

    def _own(self, value: Any) -> dict[str, Any]:
        own: dict[str, Any] = self.own.__get__(value)
        return own

    def _filled_slots(self, value: Any) -> Iterator[tuple[Any, Any]]:
        for slot in self.slots:
            try:
                entry = slot.__get__(value)
            except AttributeError:
                continue  # nothing was ever assigned to it
            yield slot, entry


@functools.lru_cache(maxsize=1024)
def layout_of(cls: Any) -> Layout | None:
    """How the instances of a class hold their entries, or None if no tensors are sought in them."""
    if issubclass(cls, _WHOLE):
        return None
    kind = next(base for base in cls.__mro__ if base in ITEMS)
    items = ITEMS[kind]
    if items.referred_to and kind is not cls:
        return None  # the references of a WeakValueDictionary know their keys, too
    own = next(filter(None, map(_own_of, cls.__mro__)), None)
    slots = tuple(slot for base in cls.__mro__ for slot in _slots_of(base))
    if kind is object and own is None and not slots:
        if not issubclass(cls, Mapping):
            return None
        items = OF_A_MAPPING
    return Layout(
        kind=kind,
        items=items,
        own=own,
        slots=slots,
        is_complete=_rest(cls, len(slots)) == _rest(kind, 0),
        is_bare_tuple=kind is tuple and own is None and not slots,
    )


def _own_of(cls: type) -> Any:
    """The descriptor of ``__dict__`` that a class adds, and no property of that name."""
    own = vars(cls).get("__dict__")
    kinds = (types.GetSetDescriptorType, types.MemberDescriptorType)
    return own if isinstance(own, kinds) else None


def _slots_of(cls: type) -> list[Any]:
    """The descriptors of the ``__slots__`` that a class adds."""
    if "__slots__" not in vars(cls) and cls is not defaultdict:  # which has its factory in one
        return []
    return [slot for slot in vars(cls).values() if isinstance(slot, types.MemberDescriptorType)]


def _rest(cls: type, slots: int) -> int:
    """The bytes of an instance, less those for slots, ``__dict__`` and weak references."""
    pointers = slots + (cls.__dictoffset__ > 0) + (cls.__weakrefoffset__ > 0)
    return cls.__basicsize__ - pointers * struct.calcsize("P")
