"""Tensors inside containers of every kind."""

from __future__ import annotations

import enum
import functools
import queue
import sqlite3
import threading
import types
import weakref
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from _support.containers import KINDS, Closed, Copier, Graph, Jagged, Output, Pair, Record, Slotted
from reweight import _tensors as trees

every_kind = pytest.mark.parametrize("kind", KINDS)


def negated(x: Tensor) -> Tensor:
    return -x


def ones() -> Tensor:
    return torch.ones(2, 3)


@every_kind
def test_a_container_stays_one_of_its_type_with_its_own_state(kind: str) -> None:
    make, read = KINDS[kind]
    value = make(ones())
    mapped = trees.map_tensors(negated, value)
    assert type(mapped) is type(value)
    found = read(mapped)
    assert len(found) > 0 and all(torch.equal(x, -ones()) for x in found)


@every_kind
def test_the_original_keeps_its_own_tensors(kind: str) -> None:
    make, read = KINDS[kind]
    value = make(ones())
    before = read(value)
    copies = Copier.copies
    trees.map_tensors(negated, value)
    assert all(torch.equal(x, y) for x, y in zip(read(value), before, strict=True))
    assert len(read(value)) > 0 and all(torch.equal(x, ones()) for x in read(value))
    assert Copier.copies == copies


@every_kind
def test_a_copy_does_not_need_the_original(kind: str) -> None:
    make, read = KINDS[kind]
    mapped = trees.map_tensors(negated, make(ones()))  # nothing else holds the original
    assert all(torch.equal(x, -ones()) for x in read(mapped))


@every_kind
def test_every_tensor_is_found_once(kind: str) -> None:
    x = ones()
    seen: list[Tensor] = []
    value = KINDS[kind][0](x)

    def look(y: Tensor) -> Tensor:
        seen.append(y)
        return -y

    trees.map_tensors(look, value)
    assert len({id(y) for y in seen}) == len(seen) > 0
    assert [id(y) for y in trees.tensors_in(value)] == [id(y) for y in seen]


@every_kind
def test_what_does_not_change_is_not_copied(kind: str) -> None:
    value = KINDS[kind][0](ones())
    assert trees.map_tensors(lambda x: x, value) is value


# These take a tensor only.
TENSOR_ONLY = {
    "dataclass with a constructor",
    "distribution",
    "jagged",
    "packed sequence",
    "struct sequence",
}


@every_kind
def test_containers_are_found_in_containers(kind: str) -> None:
    make, read = KINDS[kind]
    for outer in KINDS.keys() - TENSOR_ONLY - {"set", "frozenset"}:
        put, take = KINDS[outer]
        inner = make(ones())
        (first, *_) = take(trees.map_tensors(negated, put(inner)))
        assert type(first) is type(inner), outer
        assert all(torch.equal(x, -ones()) for x in read(first)), outer


def test_what_is_shared_stays_shared() -> None:
    x, part = ones(), [ones()]
    value = {"a": x, "pair": Pair(x, part), "record": Record(part), "part": part}
    mapped = trees.map_tensors(negated, value)
    assert mapped["a"] is mapped["pair"].first
    assert mapped["part"] is mapped["pair"].second and mapped["part"] is mapped["record"].x
    plain = trees.map_tensors(negated, (x, [x], part, {"p": part}))
    assert plain[0] is plain[1][0] and plain[2] is plain[3]["p"]


def test_what_holds_itself_does_so_in_the_copy() -> None:
    x = ones()
    entries: list[Any] = [x]
    entries += [entries, (entries, 1)]
    mapped = trees.map_tensors(negated, entries)
    assert mapped[1] is mapped and mapped[2][0] is mapped and entries[1] is entries

    node = types.SimpleNamespace(x=x, next=types.SimpleNamespace(x=x))
    node.next.next = node
    mapped = trees.map_tensors(negated, node)
    assert mapped.next.next is mapped is not node
    assert mapped.x is mapped.next.x and torch.equal(mapped.x, -x)

    within: dict[str, Any] = {"x": x}
    within["self"] = types.MappingProxyType(within)
    mapped = trees.map_tensors(negated, within)
    assert mapped["self"]["self"]["x"] is mapped["x"]
    assert [id(y) for y in trees.tensors_in(within)] == [id(x)]


def test_a_cycle_without_tensors_is_left_as_it_is() -> None:
    config = types.SimpleNamespace(name="c", lock=threading.Lock())
    config.parent = {"child": config}
    value = Pair(ones(), config)
    assert trees.map_tensors(negated, value).second is config


def test_containers_may_be_nested_to_any_depth() -> None:
    x = ones()
    for wrap in (lambda v: [v], lambda v: (v,), lambda v: {"v": v}, Record):
        value: Any = x
        for _ in range(1_500):
            value = wrap(value)
        assert [id(y) for y in trees.tensors_in(value)] == [id(x)]
        mapped = trees.map_tensors(negated, value)
        (found,) = trees.tensors_in(mapped)
        assert torch.equal(found, -x)


class Colour(enum.Enum):
    RED = torch.zeros(1)


class Annotated(np.ndarray):
    x: Any


def test_what_is_no_data_is_passed_through_with_all_that_it_holds() -> None:
    module = nn.Linear(2, 1)
    module.cache = ones()
    optimizer = torch.optim.SGD.__new__(torch.optim.SGD)
    optimizer.state = {0: ones()}
    array = np.zeros(2).view(Annotated)
    array.x = ones()
    kept = (
        module,
        optimizer,
        torch.Generator(),
        array,
        np.float64(1.0),
        Colour.RED,
        Record,
        types,
        lambda: module.cache,
        functools.partial(negated, ones()),
        (entry for entry in [ones()]),
        range(3),
        slice(ones(), None),
        "text",
        b"bytes",
    )
    for value in kept:
        assert trees.map_tensors(negated, value) is value
        assert trees.map_tensors(negated, [ones(), value])[1] is value
        assert trees.map_tensors(negated, Record(Pair(ones(), value))).x.second is value
        assert trees.tensors_in(value) == []


class Lazy:
    """Whatever asks it for an attribute other than its own has it compute something."""

    def __init__(self, x: Tensor) -> None:
        self.kept = x

    @property
    def __class__(self) -> Any:
        raise AssertionError("asked for its class")

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"asked for {name}")

    @property
    def costly(self) -> Tensor:
        raise AssertionError("computed")


def test_nothing_is_computed_to_find_tensors() -> None:
    x = ones()
    lazy = Lazy(x)
    assert [id(y) for y in trees.tensors_in([lazy])] == [id(x)]
    mapped = trees.map_tensors(negated, [lazy])[0]
    assert type(mapped) is Lazy and torch.equal(mapped.kept, -x) and lazy.kept is x
    jagged = Jagged(["a"], x)
    assert trees.map_tensors(negated, jagged)._lengths is None and jagged._lengths is None


def test_computed_attributes_are_mapped_with_what_they_were_computed_from() -> None:
    jagged = Jagged(["a"], ones())
    assert torch.equal(jagged.lengths, torch.ones(1))
    assert torch.equal(trees.map_tensors(negated, jagged).lengths, -torch.ones(1))


def test_references_to_what_is_not_copied_are_kept() -> None:
    owner = Record(None)
    reference = weakref.ref(owner)
    gone = weakref.ref(Record(None))
    value = {"x": ones(), "owner": reference, "gone": gone, "method": owner.__eq__}
    mapped = trees.map_tensors(negated, value)
    assert mapped["owner"] is reference and mapped["gone"] is gone
    assert mapped["method"] is value["method"]
    graph = Graph(x=ones())
    assert trees.tensors_in(graph.store.graph) == []  # it only refers to the graph
    table = weakref.WeakValueDictionary(graph=graph)
    assert trees.map_tensors(negated, table) is table and table["graph"] is graph


class Resource:
    """It gives back a resource when it goes."""

    open = True

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __del__(self) -> None:
        Resource.open = False


class Queue(queue.SimpleQueue):
    """Its entries are out of reach, and it refuses to be copied."""


class Connection(sqlite3.Connection):
    """``object.__new__`` would make one, without the state that is written in C."""


class Same(float):
    """Its copy would be itself."""

    __slots__ = ("x",)

    def __copy__(self) -> Same:
        return self


class Shared(float):
    """Its copy would share its attributes."""

    def __copy__(self) -> Shared:
        copied = Shared(self)
        copied.__dict__ = self.__dict__
        return copied


@pytest.mark.parametrize("cls", [Resource, Queue, Connection, Same, Shared])
def test_what_cannot_be_copied_is_named_and_left_as_it_is(cls: Any) -> None:
    Resource.open = True
    value = cls.__new__(cls)
    value.x = ones()
    uncopied: list[Any] = []
    batch = {"held": value, "x": value.x, "all": (value,)}
    mapped = trees.map_tensors(negated, batch, uncopied)
    assert uncopied == [value] and mapped["held"] is value and mapped["all"][0] is value
    assert torch.equal(value.x, ones()) and torch.equal(mapped["x"], -ones())
    assert trees.map_tensors(negated, value) is value
    del mapped
    assert Resource.open
    uncopied.clear()
    trees.map_tensors(lambda x: x, batch, uncopied)
    assert not uncopied


class Unmakeable(Closed):
    """Its constructor wants more than entries."""

    __slots__ = ()

    def __init__(self, entries: dict[str, Any], size: int) -> None:
        super().__init__(entries)


def test_a_mapping_out_of_reach_that_cannot_be_made_anew_is_left_as_it_is() -> None:
    value = Unmakeable({"x": ones()}, 2)
    uncopied: list[Any] = []
    assert trees.map_tensors(negated, [value], uncopied)[0] is value and uncopied == [value]
    assert torch.equal(trees.tensors_in(value)[0], ones())


def test_objects_in_sets_have_their_entries_before_they_are_hashed() -> None:
    x = ones()
    made, mapped_x = trees.map_tensors(negated, [{Slotted(x, 1), Pair(x, 2)}, x])
    of = {type(one): one for one in made}
    # Dataclasses compare tensors from Python 3.13 on, so no set is compared with another one.
    assert of[Slotted].x is mapped_x and of[Pair] == Pair(mapped_x, 2)
    assert all(one in made for one in made)  # a set finds what has the hash that it came with
    # What can't change must be made first.
    uncopied: list[Any] = []
    frozen = frozenset([Slotted(x, 1)])
    assert trees.map_tensors(negated, [frozen], uncopied)[0] is frozen and uncopied == [frozen]


def test_tensors_are_found_in_the_order_of_a_reader() -> None:
    a, b, c, d, e = (torch.tensor(float(i)) for i in range(5))
    value = [a, {"x": (b, Record(c))}, Output(first=d, second=a), e]
    assert [float(x) for x in trees.tensors_in(value)] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert trees.tensors_in(None) == [] and trees.tensors_in(a)[0] is a


def test_parameters_and_other_subclasses_are_tensors() -> None:
    parameter = nn.Parameter(ones())
    value = {"p": parameter, "record": Record(parameter)}
    mapped = trees.map_tensors(Tensor.detach, value)
    assert not mapped["p"].requires_grad and mapped["p"] is mapped["record"].x
    assert parameter.requires_grad and trees.tensors_in(value)[0] is parameter


ENTRIES = torch.tensor([[0.0, 1.5, 0.0, 2.0], [0.25, 0.0, 0.0, 0.0]])  # exact in every type
COMPLEX = ENTRIES.to(torch.complex64)
LAYOUTS = {
    "strided": lambda: ENTRIES,
    "coo": ENTRIES.to_sparse,
    "coo not coalesced": lambda: torch.sparse_coo_tensor([[0, 0], [1, 1]], [0.5, 1.0], (2, 4)),
    "csr": ENTRIES.to_sparse_csr,
    "csc": ENTRIES.to_sparse_csc,
    "bsr": lambda: ENTRIES.to_sparse_bsr((1, 2)),
    "bsc": lambda: ENTRIES.to_sparse_bsc((1, 2)),
    "half": ENTRIES.half,
    "bfloat16": ENTRIES.bfloat16,
    "complex": lambda: COMPLEX,
    "complex csr": COMPLEX.to_sparse_csr,
    "conjugate": (1j * ENTRIES).conj,
    "empty": lambda: ENTRIES[:0],
}


@pytest.mark.filterwarnings("ignore:Sparse")  # their support is in beta, and says so
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_tensor_of_any_layout_is_doubled_in_its_own(layout: str) -> None:
    x = LAYOUTS[layout]()
    (wide,) = trees.map_tensors(trees.doubled, (x,))
    dtype = torch.complex128 if x.is_complex() else torch.float64
    assert wide.dtype == dtype and wide.layout == x.layout and wide.shape == x.shape
    assert torch.equal(wide.to_dense(), x.to_dense().to(dtype))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_are_mapped(layout: torch.layout) -> None:
    parts = [torch.ones(2, 3), torch.zeros(1, 3)]
    x = torch.nested.nested_tensor(parts, layout=layout, requires_grad=True)
    mapped = trees.map_tensors(trees.doubled, OrderedDict(x=x))["x"]
    assert mapped.is_nested and mapped.layout == layout
    assert all(torch.equal(y, p.double()) for y, p in zip(mapped.unbind(), parts, strict=True))
    assert not trees.map_tensors(Tensor.detach, [x])[0].requires_grad
    assert trees.tensors_in(Record(x))[0] is x


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float64, torch.complex128])
def test_other_types_are_not_converted(dtype: torch.dtype) -> None:
    x = torch.ones(2).to(dtype)
    assert trees.doubled(x) is x
