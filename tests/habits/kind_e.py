"""E: containers and layouts of batches and of what the weighter reads, and losses of any number.

A container holds the batch and what the weighter reads. In float32 the model has a wrong second
derivative too, so that the container has to be converted to float64 or the result distrusted.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import ChainMap, OrderedDict, UserDict, UserList, defaultdict, deque, namedtuple
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence
from torch.optim import SGD

from _support.habits import Inner, Situation, habit, register
from habits.parts import (
    DIM,
    HIDDEN,
    SECOND,
    SIZE,
    Detached,
    Net,
    Tanh,
    filled,
    mean_squared,
    pair,
    quick,
    randn,
    squared,
)
from reweight import Losses, SampleWeighter


class Reader(SampleWeighter):
    """Reads ``hidden`` of the container that it is given, which must not have a graph."""

    def __init__(self, read: Callable[[Any], tuple[Tensor, Tensor]], dtype: torch.dtype) -> None:
        super().__init__()
        self.read = [read]
        self.gain = nn.Parameter(0.4 * randn(HIDDEN, seed=25, dtype=dtype))
        self.strict = True

    def forward(self, losses: Tensor, inputs: Any) -> Tensor:
        hidden, _ = self.read[0](inputs)
        if self.strict and hidden.requires_grad:
            raise AssertionError("the inputs of the weighter were not detached")
        return torch.exp(torch.tanh(hidden @ self.gain) - 0.1 * losses)


# -- containers -----------------------------------------------------------------------------------


class Output(OrderedDict):  # type: ignore[type-arg]
    """A dict with attributes that forbids ``update``, as outputs of transformers do."""

    def __init__(self, **entries: Any) -> None:
        super().__init__(entries)
        for name, value in entries.items():
            object.__setattr__(self, name, value)

    def update(self, *args: Any, **kwargs: Any) -> None:
        raise Exception("You cannot use ``update`` on an Output instance.")

    def setdefault(self, *args: Any, **kwargs: Any) -> Any:
        raise Exception("You cannot use ``setdefault`` on an Output instance.")

    def pop(self, *args: Any, **kwargs: Any) -> Any:
        raise Exception("You cannot use ``pop`` on an Output instance.")


@dataclasses.dataclass
class DataOutput(OrderedDict):  # type: ignore[type-arg]
    """The same as a dataclass, whose fields become entries."""

    x: Any = None
    y: Any = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            super().__setitem__(field.name, getattr(self, field.name))

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        super().__setattr__(key, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.keys() and value is not None:
            super().__setitem__(name, value)
        super().__setattr__(name, value)

    def update(self, *args: Any, **kwargs: Any) -> None:
        raise Exception("You cannot use ``update`` on a DataOutput instance.")


class Sized(Mapping):  # type: ignore[type-arg]
    """A mapping with a batch size, which its constructor needs, as a TensorDict."""

    def __init__(self, source: Mapping[str, Any], batch_size: int = 0) -> None:
        self._source, self.batch_size = dict(source), batch_size

    def __getitem__(self, key: str) -> Any:
        value = self._source[key]
        return value[: self.batch_size]

    def __iter__(self) -> Iterator[str]:
        return iter(self._source)

    def __len__(self) -> int:
        return self.batch_size


class Encoding(UserDict):  # type: ignore[type-arg]
    """A user dict with attributes, as a BatchEncoding."""

    def __init__(self, data: Any = None, kind: str = "pt") -> None:
        super().__init__(data)
        self.kind = kind

    def __getattr__(self, item: str) -> Any:
        try:
            return self.data[item]
        except KeyError as error:
            raise AttributeError(item) from error


class Required(dict):  # type: ignore[type-arg]
    """A dict whose constructor takes something else."""

    def __init__(self, *, x: Any, y: Any) -> None:
        super().__init__(x=x, y=y)
        self.size = len(y)


@dataclasses.dataclass(frozen=True)
class Frozen:
    x: Any
    y: Any


@dataclasses.dataclass(slots=True)
class Slotted:
    x: Any
    y: Any


@dataclasses.dataclass(frozen=True, slots=True)
class FrozenSlotted:
    x: Any
    y: Any


@dataclasses.dataclass
class WithInit:
    """A dataclass with an init-only argument and a field that is not in its constructor."""

    x: Any
    shift: dataclasses.InitVar[float]
    y: Any = dataclasses.field(init=False)

    def __post_init__(self, shift: float) -> None:
        self.y = shift


class Named(NamedTuple):
    x: Any
    y: Any


OldNamed = namedtuple("OldNamed", ["x", "y"])


class ExtendedNamed(Named):
    """A named tuple with an attribute."""

    @property
    def size(self) -> int:
        return len(self.y)


class Pair(tuple):  # type: ignore[type-arg]
    """A tuple whose constructor takes its entries one by one."""

    def __new__(cls, x: Any, y: Any) -> Pair:
        return super().__new__(cls, (x, y))


class Rows(list):  # type: ignore[type-arg]
    """A list with attributes."""

    def __init__(self, entries: Any, name: str) -> None:
        super().__init__(entries)
        self.name = name


class Plain:
    def __init__(self, x: Any, y: Any) -> None:
        self.x, self.y = x, y


class Slots:
    __slots__ = ("x", "y")

    def __init__(self, x: Any, y: Any) -> None:
        self.x, self.y = x, y


class ChildSlots(Slots):
    __slots__ = ("name",)

    def __init__(self, x: Any, y: Any) -> None:
        super().__init__(x, y)
        self.name = "child"


class Locked:
    """An object that forbids changes, as attrs' frozen classes do."""

    __slots__ = ("x", "y")

    def __init__(self, x: Any, y: Any) -> None:
        object.__setattr__(self, "x", x)
        object.__setattr__(self, "y", y)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{name} is frozen")


class Store:
    """A graph object: tensors behind ``__getattr__`` in a store."""

    def __init__(self, x: Any, y: Any) -> None:
        self.__dict__["_store"] = {"x": x, "y": y}

    def __getattr__(self, name: str) -> Any:
        if "_store" not in self.__dict__ or name not in self.__dict__["_store"]:
            raise AttributeError(name)
        return self.__dict__["_store"][name]

    def __setattr__(self, name: str, value: Any) -> None:
        self.__dict__["_store"][name] = value


class Computed:
    """Gives a tensor by a property."""

    def __init__(self, x: Any, y: Any) -> None:
        self._pair = (x, y)

    @property
    def x(self) -> Any:
        return self._pair[0]

    @property
    def y(self) -> Any:
        return self._pair[1]


class Cyclic(Plain):
    """Refers to itself."""

    def __init__(self, x: Any, y: Any) -> None:
        super().__init__(x, y)
        self.me = self
        self.all = [self]


def _initvar(x: Any, y: Any) -> WithInit:
    made = WithInit(x, 0.0)
    made.y = y
    return made


def _default(x: Any, y: Any) -> Any:
    made: Any = defaultdict(list)
    made["x"], made["y"] = x, y
    return made


def _module(x: Any, y: Any) -> Any:
    made = nn.Module()
    made.register_buffer("x", x if isinstance(x, Tensor) else None)
    made.y = y
    return made


def keys(c: Any) -> tuple[Any, Any]:
    return c["x"], c["y"]


def attributes(c: Any) -> tuple[Any, Any]:
    return c.x, c.y


def entries(c: Any) -> tuple[Any, Any]:
    return c[0], c[1]


CONTAINERS: dict[str, tuple[Callable[[Any, Any], Any], Callable[[Any], tuple[Any, Any]]]] = {
    "an output that forbids update": (lambda x, y: Output(x=x, y=y), attributes),
    "an output read by keys": (lambda x, y: Output(x=x, y=y), keys),
    "an output that is a dataclass too": (lambda x, y: DataOutput(x=x, y=y), attributes),
    "a mapping with a batch size": (lambda x, y: Sized({"x": x, "y": y}, SIZE), keys),
    "UserDict": (lambda x, y: UserDict(x=x, y=y), keys),
    "an encoding": (lambda x, y: Encoding({"x": x, "y": y}), attributes),
    "a dict whose constructor differs": (lambda x, y: Required(x=x, y=y), keys),
    "MappingProxyType": (lambda x, y: MappingProxyType({"x": x, "y": y}), keys),
    "ChainMap": (lambda x, y: ChainMap({"x": x}, {"y": y}), keys),
    "defaultdict": (_default, keys),
    "a frozen dataclass": (Frozen, attributes),
    "a dataclass with slots": (Slotted, attributes),
    "a frozen dataclass with slots": (FrozenSlotted, attributes),
    "a dataclass with InitVar": (_initvar, attributes),
    "NamedTuple": (Named, attributes),
    "namedtuple": (OldNamed, attributes),
    "a subclass of a NamedTuple": (ExtendedNamed, attributes),
    "a tuple with a constructor of its own": (Pair, entries),
    "a list with attributes": (lambda x, y: Rows([x, y], "rows"), entries),
    "UserList": (lambda x, y: UserList([x, y]), entries),
    "deque": (lambda x, y: deque([x, y]), entries),
    "SimpleNamespace": (lambda x, y: SimpleNamespace(x=x, y=y), attributes),
    "a plain object": (Plain, attributes),
    "an object with slots": (Slots, attributes),
    "an object with inherited slots": (ChildSlots, attributes),
    "an object that forbids changes": (Locked, attributes),
    "an object with a store": (Store, attributes),
    "an object with properties": (Computed, attributes),
    "an object that refers to itself": (Cyclic, attributes),
    "a module with a buffer": (_module, attributes),
    "objects in tuples in lists in dicts": (
        lambda x, y: {"a": [Plain(Frozen(x, None), (y,))]},
        None,
    ),  # type: ignore[dict-item]
    "a function": (lambda x, y: lambda: (x, y), lambda c: c()),
}


def nested(c: Any) -> tuple[Any, Any]:
    return c["a"][0].x.x, c["a"][0].y[0]


def _container(name: str, single: bool, twin: bool) -> Situation:
    make, read = CONTAINERS[name]
    read = read or nested
    dtype = torch.float32 if single and not twin else torch.float64
    act = torch.tanh if twin or not single else Detached.apply
    model = Net(act, dtype)

    def losses(model: Any, batch: Any) -> Losses:
        x, y = read(batch)
        hidden = x @ model.w.T
        return Losses((model.act(hidden) @ model.v - y).square(), inputs=make(hidden, y))

    weighter = Reader(read, dtype)
    # What a function gives, and what a module computes with, is left as it is.
    weighter.strict = not twin and name not in ("a function", "a module with a buffer")
    return Situation(
        model,
        losses,
        lambda m, b: losses(m, b).weighted.mean(),
        make(*pair(1, dtype)),
        make(*pair(3, dtype)),
        list(model.parameters()),
        weighter=weighter,
    )


for _name in CONTAINERS:
    for _single in (False, True):
        register(
            "E",
            f"{_name}{', float32 and a wrong activation' * _single}",
            functools.partial(_container, _name, _single),
            causes=SECOND,
            slow=not _single,
        )


# -- generators -----------------------------------------------------------------------------------


def _once(kind: str, where: str, twin: bool) -> Situation:
    """What can be read once only."""
    model = Net()

    def make(entries: tuple[Tensor, Tensor]) -> Any:
        if twin:
            return entries
        if kind == "generator":
            return (entry for entry in entries)
        if kind == "iterator":
            return iter(entries)
        if kind == "map":
            return map(torch.clone, entries)
        return zip(entries, strict=False)

    def read(batch: Any) -> tuple[Tensor, Tensor]:
        x, y = batch
        return (x[0], y[0]) if isinstance(x, tuple) else (x, y)

    def losses(model: Any, batch: Any) -> Losses:
        if where == "inputs":
            return Losses(squared(model, batch), inputs=make((model(batch[0]), batch[1])))
        x, y = read(batch)
        return Losses((model(x) - y).square())

    weighter = _First() if where == "inputs" else None
    made = Situation(
        model,
        losses,
        lambda m, b: losses(m, b).weighted.mean(),
        make(pair(1)) if where == "batch" else pair(1),
        make(pair(3)) if where == "batch" else pair(3),
        list(model.parameters()),
    )
    if weighter is not None:
        made.weighter = weighter
    return made


class _First(SampleWeighter):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, losses: Tensor, inputs: Any) -> Tensor:
        first = next(iter(inputs))
        first = first[0] if isinstance(first, tuple) else first
        return torch.exp(self.gain * torch.tanh(first))


for _kind in ("generator", "iterator", "map", "zip"):
    for _where in ("batch", "inputs"):
        register(
            "E",
            f"a {_kind} as {_where}",
            functools.partial(_once, _kind, _where),
            refused=("generator", "iterator", "once", "consumed", "list("),
        )


# -- layouts --------------------------------------------------------------------------------------


def _layout(layout: str, where: str, single: bool, twin: bool) -> Situation:
    """Sparse features of the batch, or a sparse matrix that the weighter reads."""
    dtype = torch.float32 if single and not twin else torch.float64
    model = Net(torch.tanh if twin or not single else Detached.apply, dtype)

    def convert(x: Tensor) -> Tensor:
        if twin or layout == "strided":
            return x
        if layout == "coo":
            return x.to_sparse()
        if layout == "uncoalesced":
            once = x.to_sparse()
            indices = torch.cat([once.indices(), once.indices()], 1)
            values = torch.cat([0.5 * once.values(), 0.5 * once.values()])
            return torch.sparse_coo_tensor(indices, values, x.shape)
        if layout == "csr":
            return x.to_sparse_csr()
        if layout == "csc":
            return x.to_sparse_csc()
        if layout == "bsc":
            return x.to_sparse_bsc((2, x.shape[1]))
        return x.to_sparse_bsr((2, x.shape[1]))

    def thinned(seed: int) -> Tensor:
        x = pair(seed, dtype)[0]
        return x * (x > -0.5)

    def losses(model: Any, batch: Any) -> Losses:
        x, y = batch
        product = (x.to_dense() if x.layout is not torch.strided else x) @ model.w.T
        if layout in ("coo", "csr") and where == "batch" and not twin:
            product = x @ model.w.T
        hidden = model.act(product)
        inputs = convert(product.detach()) if where == "detached inputs" else product
        if where == "inputs" and layout in ("coo", "csr"):
            inputs = convert(product)
        return Losses((hidden @ model.v - y).square(), inputs=inputs)

    batches = [(thinned(s), pair(s, dtype)[1]) for s in (1, 3)]
    if where == "batch":
        batches = [(convert(x), y) for x, y in batches]
    weighter = Reader(lambda c: (c.to_dense() if c.layout is not torch.strided else c, c), dtype)
    weighter.strict = not twin
    return Situation(
        model,
        losses,
        lambda m, b: losses(m, b).weighted.mean(),
        batches[0],
        batches[1],
        list(model.parameters()),
        weighter=weighter,
    )


for _kind in ("coo", "uncoalesced", "csr", "csc", "bsr", "bsc"):
    for _where in ("batch", "detached inputs", "inputs"):
        if _where == "inputs" and _kind not in ("coo", "csr"):
            continue
        for _single in (False, True):
            register(
                "E",
                f"a {_kind} tensor as {_where}{', float32 and a wrong activation' * _single}",
                functools.partial(_layout, _kind, _where, _single),
                causes=SECOND,
                slow=_single != (_where == "batch"),
            )


def _ragged(kind: str, single: bool, twin: bool) -> Situation:
    """Sequences of different lengths: nested tensors, and packed ones."""
    dtype = torch.float32 if single and not twin else torch.float64
    model: Any = Net(torch.tanh if twin or not single else Detached.apply, dtype)
    if kind == "PackedSequence in a GRU":
        model.rnn = filled(nn.GRU(DIM, 2), scale=0.5).to(dtype)
        model.last = filled(nn.Linear(2, 1), seed=50).to(dtype)
    lengths = [3, 2, 1, 3, 2, 2]

    def batch(seed: int) -> Any:
        rows = [randn(n, DIM, seed=seed + i, dtype=dtype) for i, n in enumerate(lengths)]
        y = randn(SIZE, seed=seed + 50, dtype=dtype)
        if kind.startswith("Packed"):
            return pack_sequence(rows, enforce_sorted=False), y
        if twin:
            return rows, y
        jagged = torch.jagged if kind == "jagged" else torch.strided
        return torch.nested.nested_tensor(rows, layout=jagged), y

    def losses(model: Any, batch: Any) -> Losses:
        rows, y = batch
        if kind == "PackedSequence in a GRU":
            _, last = model.rnn(rows)
            out = model.last(model.act(last[0])).squeeze(-1)
            return Losses((out - y).square(), inputs=rows)
        if kind == "PackedSequence":
            padded, counts = pad_packed_sequence(rows, batch_first=True)
            means = padded.sum(1) / counts[:, None]
        else:
            parts = rows if isinstance(rows, list) else rows.unbind()
            means = torch.stack([part.mean(0) for part in parts])
        return Losses((model(means) - y).square(), inputs=rows)

    return Situation(
        model,
        losses,
        lambda m, b: losses(m, b).weighted.mean(),
        batch(1),
        batch(20),
        list(model.parameters()) if "GRU" not in kind else _of_gru(model),
        weighter=_OfLosses(dtype),
    )


def _of_gru(model: Any) -> list[Tensor]:
    model.w.requires_grad_(False)
    model.v.requires_grad_(False)
    return [*model.rnn.parameters(), *model.last.parameters()]


class _OfLosses(SampleWeighter):
    """Is handed inputs, and reads the losses."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(-0.2, dtype=dtype))

    def forward(self, losses: Tensor, inputs: Any) -> Tensor:
        return torch.exp(self.gain * losses)


for _kind in ("nested tensor", "jagged", "PackedSequence", "PackedSequence in a GRU"):
    for _single in (False, True):
        register(
            "E",
            f"{_kind}{', float32 and a wrong activation' * _single}",
            functools.partial(_ragged, _kind, _single),
            causes=SECOND,
            slow=not _single,
        )


class Tagged(Tensor):
    """A tensor of a class of its own."""


@habit("E", "a subclass of Tensor as batch and inputs")
def _subclass(twin: bool) -> Situation:
    model = Net()

    def losses(model: Any, batch: Any) -> Losses:
        found = squared(model, batch).as_subclass(Tensor)
        return Losses(found, inputs=batch[0] if twin else batch[0].as_subclass(Tagged))

    def batch(seed: int) -> Any:
        x, y = pair(seed)
        return (x if twin else x.as_subclass(Tagged)), y

    return Situation(
        model,
        losses,
        lambda m, b: losses(m, b).weighted.mean(),
        batch(1),
        batch(3),
        list(model.parameters()),
        weighter=_OfLosses(torch.float64),
    )


# -- how many losses there are --------------------------------------------------------------------


def _mined(op: str, hvp: str, twin: bool) -> Situation:
    """Triplets whose number depends on the parameters."""
    model = filled(nn.Linear(DIM, 2), scale=1.0)
    labels = torch.tensor([0, 1, 0, 1, 2, 2])

    def losses(model: Any, batch: Any) -> Tensor:
        e = model(batch[0])
        if op == "cdist" and not twin:
            apart = torch.cdist(e, e)
        else:
            apart = ((e[:, None] - e[None]).square().sum(-1) + 1e-30).sqrt()
        same = labels[:, None] == labels
        mask = (same & ~torch.eye(SIZE, dtype=torch.bool))[:, :, None] & ~same[:, None, :]
        a, p, n = torch.where(mask)
        gap = apart[a, p] - apart[a, n] + 0.2
        return gap[gap > 0]

    return Situation(
        model,
        losses,
        lambda m, b: F.cross_entropy(F.pad(m(b[0]), (0, 1)), labels),
        pair(1),
        pair(3),
        list(model.parameters()),
        hvp=hvp,
    )


for _op in ("cdist", "norms"):
    for _hvp in ("auto", "autograd", "func", "finite_difference"):
        register(
            "E",
            f"mined triplets by {_op}, hvp={_hvp}",
            functools.partial(_mined, _op, _hvp),
            refused=("number of losses", "hvp="),
            causes=("number of losses",),
            slow=not quick(_hvp),
        )


def _threshold(op: bool, twin: bool) -> Situation:
    """One loss is a hair above the threshold, so that any step changes their number."""
    model = Net(torch.tanh if twin or not op else _once_tanh)
    x, y = pair(1)
    bound = float(squared(model, (x, y)).sort().values[2]) * (1.0 - 1e-3)
    near = bound if twin else bound * (1.0 + 1e-3) * (1.0 - 1e-9)

    def losses(model: Any, batch: Any) -> Tensor:
        each = squared(model, batch)
        return each[each > near]

    return Situation(
        model,
        losses,
        mean_squared,
        (x, y),
        pair(3),
        list(model.parameters()),
    )


def _once_tanh(x: Tensor) -> Tensor:
    found: Tensor = Tanh.apply(x)
    return found


for _flag in (False, True):
    register(
        "E",
        f"a loss at the threshold of mining{', and no double backward' * _flag}",
        functools.partial(_threshold, _flag),
        refused=("number of losses",),
        causes=("number of losses", "finite difference"),
    )


@habit("E", "a reduced loss of shape [1]", refused=("[1]", "one loss", "reduced", "reduction"),
       named=("[1]", "one loss", "reduced", "reduction"))  # fmt: skip
def _reduced(twin: bool) -> Situation:
    model = Net()

    def losses(model: Any, batch: Any) -> Tensor:
        total = torch.zeros(1, dtype=torch.float64)
        total = total + squared(model, batch).mean()
        return total

    return Situation(
        model,
        losses,
        mean_squared,
        pair(1),
        pair(3),
        list(model.parameters()),
    )


@habit("E", "a batch of one sample")
def _single_sample(twin: bool) -> Situation:
    model = Net()
    x, y = pair(1)
    return Situation(
        model,
        squared,
        mean_squared,
        (x[:1], y[:1]),
        pair(3),
        list(model.parameters()),
    )


# -- pruned and normed models ---------------------------------------------------------------------


def _pruned(how: str, hvp: str, twin: bool) -> Situation:
    model = nn.Sequential(filled(nn.Linear(3, 4)), nn.Tanh(), filled(nn.Linear(4, 1), seed=50))
    first: Any = model[0]
    if how == "pruned":
        prune.l1_unstructured(first, "weight", 0.5)
    elif how == "pruned, after a pass":
        prune.l1_unstructured(first, "weight", 0.5)
        model(pair(1)[0])
    elif how == "custom mask":
        prune.custom_from_mask(first, "weight", (first.weight > 0).double())
    elif how == "old weight_norm":
        nn.utils.weight_norm(first)
        model.double()
    else:
        weight_norm(first)
        model.double()
    return Situation(
        model,
        squared,
        mean_squared,
        pair(1),
        pair(3),
        [Inner(p, decay=0.1) for p in model.parameters()],
        optimizer=SGD(model.parameters(), lr=0.1, weight_decay=0.1),
        hvp=hvp,
    )


for _how in ("pruned", "pruned, after a pass", "custom mask", "old weight_norm", "weight_norm"):
    for _hvp in ("auto", "autograd", "func", "finite_difference"):
        register(
            "E",
            f"{_how}, hvp={_hvp}",
            functools.partial(_pruned, _how, _hvp),
            causes=SECOND if "norm" in _how else (),
            slow=not quick(_hvp),
        )
