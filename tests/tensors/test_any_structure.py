"""Random structures of containers, shared ones and cycles among them."""

from __future__ import annotations

import types
import weakref
from collections import OrderedDict, UserDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from _support.containers import Encoding, FrozenChild, Graph, Output, Pair, Record, Sized, Slotted
from _support.containers import Named as NamedItems
from reweight import _tensors as trees

# How a container is made of two entries. The last ones can be given entries later.
MAKERS: tuple[Callable[[Any, Any], Any], ...] = (
    lambda a, b: (a, b),
    Pair,
    lambda a, b: NamedItems("n", a, b),
    Slotted,
    FrozenChild,
    lambda a, b: types.MappingProxyType({"a": a, "b": b}),
    lambda a, b: Output(a=a, b=(b, a)),
    lambda a, b: Sized({"a": a, "b": b}, 3),
    lambda a, b: Encoding({"a": a, "b": b}, kind="k"),
    lambda a, b: Graph(a=a, b=b),
    lambda a, b: UserDict(a=a, b=b),
    lambda a, b: OrderedDict(a=a, b=b),
    lambda a, b: deque([a, b]),
    lambda a, b: types.SimpleNamespace(a=a, b=b),
    lambda a, b: Record(a, b),
    lambda a, b: {"a": a, "b": b},
    lambda a, b: [a, b],
)
PUT: dict[type, Callable[[Any, Any], None]] = {
    list: list.append,
    deque: deque.append,
    dict: lambda value, entry: value.update(c=entry),
    Record: lambda value, entry: setattr(value, "c", entry),
    types.SimpleNamespace: lambda value, entry: setattr(value, "c", entry),
}
ATOMS: tuple[Any, ...] = (None, 7, "text", 2.5, torch.float32)


@dataclass(frozen=True)
class Spec:
    """Steps that make containers of what was made before, and entries that are added last."""

    steps: tuple[tuple[int, int, int], ...]
    added: tuple[tuple[int, int], ...]

    def build(self) -> Any:
        """The last container. Tensors, containers and all else may be met several times."""
        made: list[Any] = [*(torch.full((2,), float(i)) for i in range(3)), *ATOMS]
        for maker, first, second in self.steps:
            made.append(MAKERS[maker](made[first % len(made)], made[second % len(made)]))
        for holder, entry in self.added:
            holding = made[holder % len(made)]
            if type(holding) in PUT:
                PUT[type(holding)](holding, made[entry % len(made)])
        return made[-1]


small = st.integers(0, 40)
specs = st.builds(
    Spec,
    st.lists(st.tuples(st.integers(0, len(MAKERS) - 1), small, small), min_size=1, max_size=8).map(
        tuple
    ),
    st.lists(st.tuples(small, small), max_size=3).map(tuple),
)


def inside(value: Any) -> list[Any]:
    """What a container holds, by the ways in which its users read it."""
    if isinstance(value, Graph):
        return [value.store, value.store.graph()]
    if isinstance(value, (Sized, Encoding)):
        return [*vars(value).values(), *(value[key] for key in ("a", "b"))]
    if isinstance(value, (Slotted, FrozenChild)):
        return [value.x, value.y]
    own = list(vars(value).values()) if hasattr(value, "__dict__") else []
    if isinstance(value, (dict, UserDict, types.MappingProxyType)):
        return own + [value[key] for key in value]
    return own + (list(value) if isinstance(value, (tuple, list, deque)) else [])


def everything(value: Any) -> dict[int, Any]:
    """All that can be reached, by id, in the order in which it is met."""
    found: dict[int, Any] = {}
    waiting = [value]
    while waiting:
        entry = waiting.pop()
        if id(entry) not in found:
            found[id(entry)] = entry
            if not isinstance(entry, (Tensor, str, weakref.ref, torch.dtype)):
                waiting += inside(entry)
    return found


def shape(value: Any) -> list[tuple[Any, ...]]:
    """Who holds whom, in numbers instead of objects: equal for structures that are the same."""
    found = everything(value)
    number = {key: i for i, key in enumerate(found)}
    return [
        (type(x), [number[id(y)] for y in inside(x) if id(y) in number])
        if not isinstance(x, (Tensor, str, weakref.ref, torch.dtype))
        else (type(x),)
        for x in found.values()
    ]


@given(specs)
def test_a_structure_is_mapped_as_a_whole(spec: Spec) -> None:
    value = spec.build()
    before, shape_before = everything(value), shape(value)
    tensors = [x for x in before.values() if isinstance(x, Tensor)]
    calls: dict[int, Tensor] = {}

    def mapping(x: Tensor) -> Tensor:
        assert id(x) not in calls
        calls[id(x)] = -x
        return calls[id(x)]

    mapped = trees.map_tensors(mapping, value)

    # The original is untouched.
    assert everything(value).keys() == before.keys() and shape(value) == shape_before
    # Every tensor was mapped, once, and tensors_in finds the same ones.
    assert calls.keys() == {id(x) for x in tensors}
    assert {id(x) for x in trees.tensors_in(value)} == calls.keys()
    # Types, sharing and cycles are those of the original.
    after = everything(mapped)
    assert shape(mapped) == shape_before
    # One by one: a tensor is that of its original, a container without tensors is the original.
    for old, new in zip(before.values(), after.values(), strict=True):
        if isinstance(old, Tensor):
            assert new is calls[id(old)]
        elif not isinstance(old, weakref.ref):
            assert (new is old) == (not trees.tensors_in(old)), type(old)


@given(specs)
def test_a_structure_in_which_nothing_changes_is_left_as_it_is(spec: Spec) -> None:
    value = spec.build()
    assert trees.map_tensors(lambda x: x, value) is value
    doubled = trees.map_tensors(trees.doubled, value)
    assert trees.map_tensors(trees.doubled, doubled) is doubled


@given(specs)
def test_items_and_attributes_agree_in_the_copy(spec: Spec) -> None:
    for new in everything(trees.map_tensors(lambda x: -x, spec.build())).values():
        if isinstance(new, Output):
            assert new.a is new["a"] and new.b is new["b"]
        if isinstance(new, Encoding):
            assert new.a is new["a"] is new.data["a"]
        if isinstance(new, Graph):
            assert new.store.graph() is new and new.a is new.store.entries["a"]
