"""Containers like those that libraries of models and batches define."""

from __future__ import annotations

import types
import weakref
from collections import Counter, OrderedDict, UserDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import InitVar, dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence


class Pair(NamedTuple):
    first: Any
    second: Any


class Rows(NamedTuple):
    """Its length is that of the batch, and iteration goes over samples."""

    x: Any
    y: Any

    def __len__(self) -> int:
        return len(self.x)

    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("the samples of a batch are no entries of the tuple")


class Named(tuple):
    """A tuple with attributes, whose ``__new__`` takes something else than its items."""

    name: str

    def __new__(cls, name: str, *items: Any) -> Named:
        made = super().__new__(cls, items)
        made.name = name
        return made


@dataclass
class Record:
    x: Any
    name: str = "n"


@dataclass(frozen=True)
class Slotted:
    __slots__ = ("x", "y")
    x: Any
    y: Any


@dataclass
class Initialised:
    """Its constructor takes what it does not keep, and changes what it takes."""

    scale: InitVar[float]
    x: Any
    made: int = field(init=False)
    unset: Any = field(init=False)

    def __post_init__(self, scale: float) -> None:
        self.x = scale * self.x
        self.made = 1


class Output(OrderedDict):
    """Items and attributes at once; entries can't be exchanged as in other dicts."""

    def __init__(self, **entries: Any) -> None:
        super().__init__()
        for name, entry in entries.items():
            super().__setitem__(name, entry)
        self.__dict__.update(entries)

    def refuse(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("an output is not changed")

    update = setdefault = pop = __setitem__ = __delitem__ = __setattr__ = refuse


class Sized(MutableMapping):
    """A mapping with a batch size, which its constructor demands and its length is."""

    def __init__(self, source: dict[str, Any], batch_size: int) -> None:
        self._source, self._size = source, batch_size

    def __getitem__(self, key: str) -> Any:
        return self._source[key]

    def __setitem__(self, key: str, value: Any) -> None:
        raise RuntimeError("locked")

    def __delitem__(self, key: str) -> None:
        raise RuntimeError("locked")

    def __iter__(self) -> Iterator[str]:
        return iter(self._source)

    def __len__(self) -> int:
        return self._size


class Closed(Mapping):
    """Its entries are out of reach, like those of mappings that are written in C."""

    __slots__ = ()
    entries: dict[int, dict[str, Any]] = {}

    def __init__(self, entries: dict[str, Any]) -> None:
        Closed.entries[id(self)] = entries

    def __getitem__(self, key: str) -> Any:
        return Closed.entries[id(self)][key]

    def __iter__(self) -> Iterator[str]:
        return iter(Closed.entries[id(self)])

    def __len__(self) -> int:
        return len(Closed.entries[id(self)])


class Encoding(UserDict):
    """Entries can be read as attributes, and any attribute is looked for among the entries."""

    def __init__(self, data: dict[str, Any], *, kind: str) -> None:
        super().__init__(data)
        self.kind = kind

    def __getattr__(self, name: str) -> Any:
        return self.data[name]


class Grouped(defaultdict):
    """Its factory is set by a constructor that takes something else."""

    def __init__(self, name: str) -> None:
        super().__init__(list)
        self.name = name


class Picky(dict):
    def __init__(self, *, size: int) -> None:
        super().__init__()
        self.size = size


class Attributes(dict):
    """Its items are its attributes."""

    def __init__(self, **entries: Any) -> None:
        super().__init__(entries)
        self.__dict__ = self


class Stack(list):
    """A list with a state of its own, which takes entries one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def push(self, entry: Any) -> Stack:
        super().append(entry)
        self.count += 1
        return self

    def refuse(self, *_: Any) -> Any:
        raise RuntimeError("use push()")

    append = extend = __setitem__ = refuse


class Store:
    """Entries of a graph; it refers to the graph."""

    def __init__(self, graph: Graph, **entries: Any) -> None:
        self.__dict__["entries"] = entries
        self.__dict__["graph"] = weakref.ref(graph)

    def __getattr__(self, name: str) -> Any:
        if name not in self.entries:
            raise AttributeError(name)
        return self.entries[name]

    def __setattr__(self, name: str, value: Any) -> None:
        self.entries[name] = value


class Graph:
    """Attributes are those of its store."""

    def __init__(self, **entries: Any) -> None:
        self.__dict__["store"] = Store(self, **entries)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["store"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__dict__["store"], name, value)


class Jagged:
    """Its constructor takes apart what it is given; what is costly is computed when asked for."""

    def __init__(self, keys: list[str], values: Any) -> None:
        self._keys = tuple(keys)
        self._values = values + 0
        self._lengths: Tensor | None = None

    @property
    def lengths(self) -> Tensor:
        if self._lengths is None:
            self._lengths = torch.ones(len(self._keys))
        return self._lengths


class Frozen:
    """Slots, in a class and in its base, one of them never set; nothing can be assigned."""

    __slots__ = ("x", "unset")

    def __init__(self, x: Any) -> None:
        object.__setattr__(self, "x", x)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("frozen")


class FrozenChild(Frozen):
    __slots__ = ("__weakref__", "y")

    def __init__(self, x: Any, y: Any) -> None:
        super().__init__(x)
        object.__setattr__(self, "y", y)


class Bound:
    """It holds a method of its own."""

    def __init__(self, x: Any) -> None:
        self.x = x
        self.read = self._read

    def _read(self) -> Any:
        return self.x


class Copier:
    """``copy.copy`` of it runs code with side effects."""

    copies = 0

    def __init__(self, x: Any) -> None:
        self.x = x

    def __copy__(self) -> Copier:
        Copier.copies += 1
        return Copier(self.x)

    def __reduce__(self) -> Any:
        Copier.copies += 1
        return Copier, (self.x,)


class Number(float):
    """Its value lies in a part of it that is written in C."""

    x: Any


def _with(value: Any, **attributes: Any) -> Any:
    for name, attribute in attributes.items():
        setattr(value, name, attribute)
    return value


def _filled(value: Any, x: Tensor) -> Any:
    value["x"] = x
    return value


# A container around a tensor, and the ways to read that tensor in it.
KINDS: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], list[Any]]]] = {
    "tuple": (lambda x: (x, "n"), lambda v: [v[0]]),
    "list": (lambda x: [1, x], lambda v: [v[1]]),
    "dict": (lambda x: {"x": x, 3: None}, lambda v: [v["x"]]),
    "named tuple": (lambda x: Pair(x, [x]), lambda v: [v.first, v[0], v.second[0]]),
    "named tuple with methods": (lambda x: Rows(x, 1), lambda v: [v.x, v[0]]),
    "tuple with attributes": (
        lambda x: _with(Named("n", x), extra=x),
        lambda v: [v[0], v.extra][: 2 * (v.name == "n")],
    ),
    "struct sequence": (
        lambda x: torch.return_types.max((x, torch.zeros(1, dtype=torch.int64))),
        lambda v: [v.values, v[0]],
    ),
    "packed sequence": (lambda x: pack_sequence([x]), lambda v: [v.data, v[0]]),
    "dataclass": (lambda x: Record(x), lambda v: [v.x][: v.name == "n"]),
    "frozen dataclass with slots": (lambda x: Slotted(x, [x]), lambda v: [v.x, v.y[0]]),
    "dataclass with a constructor": (
        lambda x: Initialised(1.0, x),
        lambda v: [v.x][: v.made == 1 and not hasattr(v, "unset")],
    ),
    "ordered": (lambda x: OrderedDict(a=1, x=x), lambda v: [v["x"]][: [*v] == ["a", "x"]]),
    "default": (
        lambda x: _filled(defaultdict(list), x),
        lambda v: [v["x"]][: v.default_factory is list],
    ),
    "default with a constructor": (
        lambda x: _filled(Grouped("n"), x),
        lambda v: [v["x"]][: v.default_factory is list and v.name == "n"],
    ),
    "counter": (lambda x: _filled(Counter("aa"), x), lambda v: [v["x"]][: v["a"] == 2]),
    "model output": (
        lambda x: Output(first=x, both=(x, x)),
        lambda v: [v["first"], v.first, v["both"][0], v.both[1]][: 4 * (v["both"] is v.both)],
    ),
    "mapping with a size": (lambda x: Sized({"x": x}, 7), lambda v: [v["x"]][: len(v) == 7]),
    "closed mapping": (lambda x: Closed({"x": x}), lambda v: [v["x"]]),
    "user dict": (lambda x: UserDict(x=x), lambda v: [v["x"], v.data["x"]]),
    "encoding": (lambda x: Encoding({"x": x}, kind="k"), lambda v: [v["x"], v.x][: v.kind == "k"]),
    "dict with a constructor": (
        lambda x: _filled(Picky(size=3), x),
        lambda v: [v["x"]][: v.size == 3],
    ),
    "dict of attributes": (
        lambda x: Attributes(x=x),
        lambda v: [v["x"], v.x][: 2 * (vars(v) is v)],
    ),
    "list with a state": (lambda x: Stack().push(x), lambda v: [v[0]][: v.count == 1]),
    "proxy": (lambda x: types.MappingProxyType({"x": x}), lambda v: [v["x"]]),
    "deque": (lambda x: deque([0, x, 1], 3), lambda v: [v[1]][: v.maxlen == 3]),
    "set": (lambda x: {x, "n"}, lambda v: [e for e in v if e != "n"]),
    "frozenset": (lambda x: frozenset([x]), lambda v: [*v]),
    "namespace": (lambda x: types.SimpleNamespace(x=x, n=1), lambda v: [v.x]),
    "graph": (
        lambda x: Graph(x=x),
        lambda v: [v.x, v.store.x, v.store.graph().x][: 3 * (v.store.graph() is v)],
    ),
    "jagged": (lambda x: Jagged(["a"], x), lambda v: [v._values][: v._keys == ("a",)]),
    "slots": (
        lambda x: FrozenChild(x, (x,)),
        lambda v: [v.x, v.y[0]][: 2 * (not hasattr(v, "unset"))],
    ),
    "bound method": (lambda x: Bound(x), lambda v: [v.x, v.read()]),
    "copier": (lambda x: Copier(x), lambda v: [v.x]),
    "number": (lambda x: _with(Number(2.5), x=x), lambda v: [v.x][: v == 2.5]),
    "distribution": (
        lambda x: torch.distributions.Laplace(x, x.abs() + 1.0, validate_args=False),
        lambda v: [v.loc, v.mean],
    ),
}
