"""The items of Python's own collections: how they are read, and how a copy gets others."""

from __future__ import annotations

import gc
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Items:
    """What the instances of a class, and of its subclasses, hold beside attributes.

    None of the functions calls a method that a subclass may have overridden.

    Attributes:
        read: ``value -> items``.
        fill: ``(new, value, items)`` gives them to an instance that was made without any, which
            may be among them.
        make: ``(value, items) -> new``, where instances can't be changed.
        referred_to: whether the item is an object that is only referred to, and not held.
    """

    read: Callable[[Any], Iterable[Any]]
    fill: Callable[[Any, Any, Iterable[Any]], None] | None = None
    make: Callable[[Any, list[Any]], Any] | None = None
    referred_to: bool = False


def _of_dicts(kind: Any) -> Items:
    def fill(new: Any, value: Any, items: Iterable[Any]) -> None:
        for key, item in zip(kind.keys(value), items, strict=True):
            kind.__setitem__(new, key, item)

    return Items(kind.values, fill)


def _tuple(value: Any, items: list[Any]) -> Any:
    try:
        return tuple.__new__(type(value), items)
    except TypeError:  # torch.return_types and other struct sequences have their own constructor
        return type(value)(items)


ITEMS: dict[type, Items] = {
    OrderedDict: _of_dicts(OrderedDict),
    dict: _of_dicts(dict),
    list: Items(list.__iter__, lambda new, _, items: list.__init__(new, items)),
    deque: Items(
        deque.__iter__, lambda new, value, items: deque.__init__(new, items, value.maxlen)
    ),
    set: Items(set.__iter__, lambda new, _, items: set.__init__(new, items)),
    frozenset: Items(
        frozenset.__iter__, make=lambda value, items: frozenset.__new__(type(value), items)
    ),
    tuple: Items(tuple.__iter__, make=_tuple),
    # It has no attribute for the mapping that it shows.
    types.MappingProxyType: Items(
        gc.get_referents, make=lambda _, items: types.MappingProxyType(items[0])
    ),
    weakref.ref: Items(
        lambda ref: (ref(),), make=lambda _, items: weakref.ref(items[0]), referred_to=True
    ),
    types.MethodType: Items(
        lambda method: (method.__self__,),
        make=lambda method, items: types.MethodType(method.__func__, items[0]),
        referred_to=True,
    ),
    types.SimpleNamespace: Items(lambda _: ()),  # here for its __new__
    object: Items(lambda _: ()),
}
# Of mappings that are written in C and keep their entries out of Python's reach. Their own methods
# are the only way.
OF_A_MAPPING = Items(
    lambda value: value.values(),
    make=lambda value, items: type(value)(dict(zip(value, items, strict=True))),
)
