"""C: what was in order at the first outer step, and is not at a later one.

``Detached`` and ``weight_norm`` on the CPU have a right first derivative and a second one that is
silently wrong. Here it comes in after the first outer step, or where it is hard to look at.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.optim import SGD
from torch.utils.checkpoint import checkpoint

from _support.habits import Inner, Situation, habit, register
from _support.habits.situation import weighter
from habits import parts
from habits.parts import (
    HIDDEN,
    SECOND,
    SIZE,
    Detached,
    Net,
    filled,
    mean_squared,
    pair,
    quick,
    randn,
    squared,
)
from reweight import Losses

REENTRANT = ("use_reentrant", "reentrant")


def situation(model: nn.Module, **changes: Any) -> Situation:
    dtype = changes.pop("dtype", torch.float64)
    arguments: dict[str, Any] = {
        "train": pair(1, dtype),
        "dev": pair(3, dtype),
        "inner": list(model.parameters()),
        "weighter": weighter(dtype),
    }
    return parts.situation(model, **{**arguments, **changes})


def act(twin: bool) -> Callable[[Tensor], Tensor]:
    """``tanh``, with a wrong second derivative but for the twin."""
    return torch.tanh if twin else Detached.apply  # type: ignore[return-value]


# -- it joins later -------------------------------------------------------------------------------


class TwoLayers(nn.Module):
    """The first layer has the activation that is wrong."""

    def __init__(self, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.net = filled(nn.Linear(3, 3), seed=30), Net()
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.net(self.act(self.first(x)))
        return found


def _unfrozen(norm: bool, hvp: str, twin: bool) -> Situation:
    model = TwoLayers(torch.tanh if norm else act(twin))
    first: Any = model.first
    if norm:
        weight_norm(first)
    model.double()
    first.requires_grad_(False)
    return situation(
        model,
        inner=[*first.parameters(), *model.net.parameters()],
        later=lambda: first.requires_grad_(True),
        hvp=hvp,
    )


for _hvp in ("auto", "autograd", "func"):
    register(
        "C",
        f"weight_norm is unfrozen, hvp={_hvp}",
        functools.partial(_unfrozen, True, _hvp),
        causes=SECOND,
    )
    register(
        "C",
        f"a layer under a wrong activation is unfrozen, hvp={_hvp}",
        functools.partial(_unfrozen, False, _hvp),
        causes=SECOND,
        refused=("hvp=", "finite_difference"),
    )


class Scheduled(Net):
    """A second branch, which a flag, a number, a buffer or a mode switches on."""

    def __init__(self, act: Callable[[Tensor], Tensor], by: str) -> None:
        super().__init__()
        self.branch = filled(nn.Linear(3, 3), seed=30)
        self.other, self.by = act, by
        self.alpha: Any = 0.0
        if by == "buffer":
            del self.alpha
            self.register_buffer("alpha", torch.zeros((), dtype=torch.float64))
        self.train(by != "mode")

    def switch(self) -> None:
        if self.by == "mode":
            self.train()
        elif self.by == "buffer":
            self.alpha.fill_(1.0)
        elif self.by == "function":
            self.by = "number"
            self.alpha = 1.0
        else:
            self.alpha = 1.0

    def forward(self, x: Tensor) -> Tensor:
        found = super().forward(x)
        if self.by == "mode" and not self.training:
            return found
        if self.by == "flag" and self.alpha == 0.0:
            return found
        factor = 1.0 if self.by == "mode" else self.alpha
        function = torch.sin if self.by == "function" else self.other
        return found + factor * function(self.branch(x)).sum(1)


def _scheduled(by: str, hvp: str, twin: bool) -> Situation:
    model = Scheduled(act(twin), by)
    return situation(model, later=model.switch, hvp=hvp)


for _by in ("flag", "number", "buffer", "mode", "function"):
    for _hvp in ("auto", "autograd"):
        register(
            "C",
            f"a wrong term joins by a {_by}, hvp={_hvp}",
            functools.partial(_scheduled, _by, _hvp),
            causes=SECOND,
        )


def _joins_the_losses(factor: bool, twin: bool) -> Situation:
    """A regulariser in the fixed part, scheduled by a closure's variable."""
    model, box = Net(), {"epoch": 0}
    wrong = act(twin)

    def losses(model: Any, batch: Any) -> Losses:
        if not factor and not box["epoch"]:
            return Losses(squared(model, batch))
        return Losses(squared(model, batch), fixed=box["epoch"] * wrong(3.0 * model.w).sum())

    return situation(
        model,
        losses=losses,
        later=lambda: box.update(epoch=1),
    )


for _factor in (False, True):
    register(
        "C",
        f"a wrong penalty joins the losses, {'its factor was 0' if _factor else 'it is new'}",
        functools.partial(_joins_the_losses, _factor),
        causes=SECOND,
    )


@habit("C", "another head is used later", causes=SECOND)
def _other_head(twin: bool) -> Situation:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = filled(nn.Linear(3, HIDDEN), seed=30)
            self.heads = nn.ModuleList(filled(nn.Linear(HIDDEN, 1), seed=40 + i) for i in range(2))
            self.task = 0

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.body(x)
            hidden = act(twin)(hidden) if self.task else torch.tanh(hidden)
            found: Tensor = self.heads[self.task](hidden)
            return found

    model = Heads()

    def later() -> None:
        model.task = 1

    return situation(model, later=later)


@habit("C", "a batch of another task takes the wrong branch", causes=SECOND)
def _branch_of_the_batch(twin: bool) -> Situation:
    class Branching(Net):
        def forward(self, x: Tensor) -> Tensor:
            hidden = x @ self.w.T
            long = x.shape[0] > SIZE - 2
            return (act(twin)(hidden) if long else torch.tanh(hidden)) @ self.v

    x, y = pair(1)
    return situation(Branching(), early=((x[:3], y[:3]), (x[:3], y[:3])))


@habit("C", "values of another batch take the wrong branch", causes=SECOND)
def _branch_of_the_values(twin: bool) -> Situation:
    class Branching(Net):
        def forward(self, x: Tensor) -> Tensor:
            hidden = x @ self.w.T
            outlier = bool((x[:, 0].abs() > 5.0).any())
            return (act(twin)(hidden) if outlier else torch.tanh(hidden)) @ self.v

    x, y = pair(1)
    far = x.clone()
    far[0, 0] = 5.5
    return situation(Branching(), train=(far, y), early=((x, y), (x, y)))


class RightAtFirst(torch.autograd.Function):
    """``elu``-like: the second derivative is wrong for negative inputs only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.where(x > 0, torch.tanh(x), 2.0 * torch.tanh(x))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        y = torch.where(x > 0, torch.tanh(x), 2.0 * torch.tanh(x.detach()))
        slope = torch.where(x > 0, 1.0 - y * y, 2.0 - 0.5 * y * y)
        return grad * slope


@habit("C", "a second derivative that is wrong for the values of later batches", causes=SECOND)
def _wrong_values(twin: bool) -> Situation:
    def wrong(x: Tensor) -> Tensor:
        return torch.where(x > 0, torch.tanh(x), 2.0 * torch.tanh(x))

    model = Net(wrong if twin else RightAtFirst.apply)
    with torch.no_grad():
        model.w.abs_()
    x, y = pair(1)
    return situation(model, train=(-x.abs(), y), dev=(x.abs(), y), early=((x.abs(), y),) * 2)


def _replaced(how: str, twin: bool) -> Situation:
    """An activation or a layer is replaced, or a parametrization added."""
    model = TwoLayers(torch.tanh)
    first: Any = model.first
    inner: list[Any] = list(model.parameters())

    def later() -> None:
        if how == "activation":
            model.act = act(twin)
        elif how == "forward":
            plain = model.net.act
            model.net.act = lambda x: act(twin)(plain(x))
        else:
            with torch.no_grad():
                weight_norm(first)
                first.double()

    if how != "weight_norm":
        return situation(model, later=later)
    made = situation(model, later=later)
    inner = [first.bias, *model.net.parameters()]

    def norm() -> None:
        later()
        inner.extend(p for p in first.parametrizations.parameters())

    made.later, made.inner = norm, inner
    return made


for _how in ("activation", "forward", "weight_norm"):
    register(
        "C",
        f"{_how} replaced later",
        functools.partial(_replaced, _how),
        causes=SECOND,
    )


# -- reentrant checkpoints, and another way to the weighter ---------------------------------------


class Saving(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.net = filled(nn.Linear(3, 3), seed=30), Net()
        self.saving = False

    def forward(self, x: Tensor) -> Tensor:
        def body(x: Tensor) -> Tensor:
            return torch.tanh(self.first(x))

        if self.saving:
            x = x.detach().requires_grad_(True)
            found: Tensor = self.net(checkpoint(body, x, use_reentrant=True))
        else:
            found = self.net(body(x))
        return found


def _checkpointed(side: str, hvp: str, twin: bool) -> Situation:
    model = Saving()
    box = {"on": False}

    def losses(model: Any, batch: Any) -> Tensor:
        model.saving = box["on"] and not twin and side == "train"
        return squared(model, batch)

    def outer_loss(model: Any, batch: Any) -> Tensor:
        model.saving = box["on"] and not twin and side == "dev"
        return mean_squared(model, batch)

    return situation(
        model,
        losses=losses,
        outer_loss=outer_loss,
        later=lambda: box.update(on=True),
        hvp=hvp,
    )


for _side in ("train", "dev"):
    for _hvp in ("auto", "autograd", "func", "finite_difference"):
        register(
            "C",
            f"a reentrant checkpoint on the {_side} side later, hvp={_hvp}",
            functools.partial(_checkpointed, _side, _hvp),
            slow=not quick(_hvp),
            refused=REENTRANT,
            causes=REENTRANT,
        )


@habit("C", "a reentrant checkpoint in the fixed part later", refused=REENTRANT, causes=REENTRANT)
def _checkpointed_fixed(twin: bool) -> Situation:
    model = Saving()
    box = {"on": False}

    def losses(model: Any, batch: Any) -> Losses:
        model.saving = False
        plain = squared(model, batch)
        model.saving = box["on"] and not twin
        return Losses(plain, fixed=0.5 * squared(model, batch).mean())

    return situation(
        model, losses=losses, later=lambda: box.update(on=True), outer_loss=_outer_plain
    )


def _outer_plain(model: Any, batch: Any) -> Tensor:
    model.saving = False
    return mean_squared(model, batch)


def _another_way(where: str, twin: bool) -> Situation:
    """A penalty on the weighter's parameters joins later."""
    model, made = Net(), weighter()
    box = {"on": False}

    def penalty() -> Tensor:
        return 0.1 * sum((p.square().sum() for p in made.parameters()), torch.zeros(()).double())

    def losses(model: Any, batch: Any) -> Losses:
        found = squared(model, batch)
        if not box["on"] or where == "outer loss":
            return Losses(found)
        # Through the product, so that the mixed derivative is not zero.
        coupled = penalty() * model.v.square().sum()
        return Losses(found, coupled) if where == "fixed part" else Losses(found + coupled)

    def outer_loss(model: Any, batch: Any) -> Tensor:
        more = penalty() if box["on"] and where == "outer loss" else 0.0
        return mean_squared(model, batch) + more

    return situation(
        model,
        weighter=made,
        losses=losses,
        outer_loss=outer_loss,
        later=lambda: box.update(on=True),
    )


for _where in ("fixed part", "weighted losses", "outer loss"):
    register(
        "C",
        f"a penalty on the weighter joins the {_where} later",
        functools.partial(_another_way, _where),
        refused=("weighter",) if _where != "outer loss" else (),
    )


# -- types ----------------------------------------------------------------------------------------


@habit("C", "model.double() later", causes=SECOND)
def _doubled_later(twin: bool) -> Situation:
    """The wrong activation is for float64 only, as a kernel's fallback is."""

    def chosen(x: Tensor) -> Tensor:
        return act(twin)(x) if x.dtype == torch.float64 else torch.tanh(x)

    model, made = Net(chosen, torch.float32), weighter(torch.float32)

    def later() -> None:
        model.double()
        made.double()

    early = pair(1, torch.float32), pair(3, torch.float32)
    return situation(
        model,
        weighter=made,
        early=early,
        later=later,
        inner=[model.w, model.v],
        dtype=torch.float64,
    )


def _in_float32(part: str, hvp: str, twin: bool) -> Situation:
    """A float32 model with a wrong activation, and a part that stays in float32."""
    dtype = torch.float64 if twin else torch.float32
    narrow = torch.float64 if twin else torch.float32

    class Narrow(Net):
        def __init__(self) -> None:
            super().__init__(act(twin), dtype)
            self.table = randn(HIDDEN, seed=90, dtype=dtype)

        def forward(self, x: Tensor) -> Tensor:
            hidden = x @ self.w.T
            if part == "norm":
                single = hidden.to(narrow)
                single = single / (single.square().mean(-1, keepdim=True) + 0.5).sqrt()
                hidden = single.to(hidden.dtype)
            elif part == "softmax":
                share = hidden.softmax(-1, dtype=narrow)
                hidden = 3.0 * share.to(hidden.dtype) * hidden
            elif part == "float()":
                hidden = hidden if twin else hidden.float()
            elif part == "plain table":
                hidden = hidden + self.table
            elif part == "numpy constant":
                constant = self.table.numpy()
                hidden = hidden + torch.from_numpy(constant)
            elif part == "new tensor":
                hidden = hidden + torch.full((HIDDEN,), 0.25, dtype=narrow)
            found = self.act(hidden)
            if part == "dtype test":
                assert twin or x.dtype == torch.float32
            return found @ self.v.to(found.dtype)

    def losses(model: Any, batch: Any) -> Losses:
        found = (model(batch[0]) - batch[1]).square()
        if part != "zeros(1) penalty":
            return Losses(found)
        total = torch.zeros(1, dtype=narrow)
        for p in model.parameters():
            total += (act(twin)(p).sum() * 0.3).to(narrow)
        return Losses(found, fixed=total)

    return situation(
        Narrow(),
        losses=losses,
        outer_loss=lambda m, b: losses(m, b).weighted.mean(),
        dtype=dtype,
        hvp=hvp,
    )


for _part in (
    "norm",
    "softmax",
    "float()",
    "zeros(1) penalty",
    "plain table",
    "numpy constant",
    "new tensor",
    "dtype test",
):
    for _hvp in ("auto", "autograd"):
        register(
            "C",
            f"a wrong activation and {_part} in float32, hvp={_hvp}",
            functools.partial(_in_float32, _part, _hvp),
            causes=SECOND,
            slow=not quick(_hvp),
        )


@habit("C", "a wrong activation in a model that is float32 inside a float64 loss", causes=SECOND)
def _mixed(twin: bool) -> Situation:
    model = Net(act(twin), torch.float64 if twin else torch.float32)
    dtype = torch.float64 if twin else torch.float32

    def losses(model: Any, batch: Any) -> Tensor:
        return (model(batch[0].to(dtype)).double() - batch[1].double()).square()

    return situation(model, losses=losses, outer_loss=lambda m, b: losses(m, b).mean())


# -- batches that are hard to convert to float64 --------------------------------------------------


class OwnBatch:
    def __init__(self, x: Any, y: Any) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.y)


class SlottedBatch:
    __slots__ = ("x", "y")

    def __init__(self, x: Any, y: Any) -> None:
        self.x, self.y = x, y


class GetterBatch:
    """Its tensors are behind ``__getattr__``, in a store."""

    def __init__(self, x: Any, y: Any) -> None:
        self.__dict__["_store"] = {"x": x, "y": y}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.__dict__["_store"][name]


@dataclass
class DataBatch:
    x: Any
    y: Any


def _closure(x: Any, y: Any) -> Any:
    return lambda: (x, y)


BATCHES: dict[str, Callable[[Any, Any], Any]] = {
    "an own class": OwnBatch,
    "slots": SlottedBatch,
    "a store behind __getattr__": GetterBatch,
    "SimpleNamespace": lambda x, y: SimpleNamespace(x=x, y=y),
    "a dataclass": DataBatch,
    "numpy in a dict": lambda x, y: {"x": x.numpy(), "y": y.numpy()},
    "numpy in an own class": lambda x, y: OwnBatch(x.numpy(), y.numpy()),
    "nested lists of floats": lambda x, y: (x.tolist(), y.tolist()),
    "a function that gives the tensors": _closure,
    "an own class inside a tuple": lambda x, y: (OwnBatch(x, y), "name"),
    "an index into a captured set": lambda x, y: torch.arange(SIZE),
}


def _read(batch: Any, dtype: torch.dtype, captured: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    if isinstance(batch, Tensor):
        x, y = captured[0][batch], captured[1][batch]
    elif isinstance(batch, tuple) and isinstance(batch[0], OwnBatch):
        x, y = batch[0].x, batch[0].y
    elif isinstance(batch, tuple):
        x, y = torch.tensor(batch[0]).to(dtype), torch.tensor(batch[1]).to(dtype)
    elif callable(batch):
        x, y = batch()
    elif isinstance(batch, dict):
        x, y = batch["x"], batch["y"]
    else:
        x, y = batch.x, batch.y
    if isinstance(x, np.ndarray):
        x, y = torch.from_numpy(x), torch.from_numpy(y)
    return x, y


def _batched(make: Callable[[Any, Any], Any], norm: bool, twin: bool) -> Situation:
    dtype = torch.float64 if twin else torch.float32
    model: Any
    if norm:
        model = nn.Sequential(weight_norm(filled(nn.Linear(3, 3), seed=30)), nn.Tanh(), Net())
        model = model.to(dtype)
    else:
        model = Net(act(twin), dtype)
    captured = pair(1, dtype)

    def losses(model: Any, batch: Any) -> Tensor:
        x, y = _read(batch, dtype, captured)
        return (model(x) - y).square()

    return situation(
        model,
        losses=losses,
        outer_loss=lambda m, b: losses(m, b).mean(),
        train=make(*pair(1, dtype)),
        dev=make(*pair(3, dtype)),
        dtype=dtype,
    )


for _name, _make in BATCHES.items():
    register(
        "C",
        f"weight_norm and a batch as {_name}",
        functools.partial(_batched, _make, True),
        causes=SECOND,
        slow=_name not in ("an own class", "numpy in a dict"),
    )
    register(
        "C",
        f"a wrong activation and a batch as {_name}",
        functools.partial(_batched, _make, False),
        causes=SECOND,
    )


# -- what hides a wrong second derivative from one look -------------------------------------------


@habit("C", "the last layer is zero at the first outer step", causes=SECOND)
def _zero_start(twin: bool) -> Situation:
    model = Net(act(twin))
    value = model.v.detach().clone()
    with torch.no_grad():
        model.v.zero_()

    def later() -> None:
        with torch.no_grad():
            model.v.copy_(value)

    return situation(model, later=later)


@habit("C", "the weights of the samples are zero at the first outer step", causes=SECOND)
def _zero_weights(twin: bool) -> Situation:
    model, box = Net(act(twin)), {"scale": 0.0}

    def losses(model: Any, batch: Any) -> Losses:
        bowl = 0.1 * (model.v.square().sum() + model.w.square().sum())
        return Losses(box["scale"] * squared(model, batch), fixed=bowl)

    return situation(model, losses=losses, later=lambda: box.update(scale=1.0))


@habit("C", "a wrong second derivative in one small parameter of many", causes=SECOND)
def _small_share(twin: bool) -> Situation:
    model = Net()
    model.gain = nn.Parameter(torch.tensor(0.2, dtype=torch.float64))  # type: ignore[assignment]

    def losses(model: Any, batch: Any) -> Tensor:
        return squared(model, batch) + act(twin)(5.0 * model.gain) * (0.5 + 0.1 * batch[1])

    return situation(model, losses=losses, outer_loss=lambda m, b: losses(m, b).mean())


@habit("C", "gradients that are not those of the loss join later", causes=("detach", "derivative"))
def _straight_through(twin: bool) -> Situation:
    model, box = Net(), {"on": False}

    def losses(model: Any, batch: Any) -> Tensor:
        out = model(batch[0])
        if box["on"]:
            out = out + (2.0 * out.pow(3) - out).detach() if not twin else out
        return (out - batch[1]).square()

    # The losses after the switch are others: weights and losses are compared with their own.
    made = situation(
        model,
        losses=losses,
        outer_loss=lambda m, b: losses(m, b).mean(),
        later=lambda: box.update(on=True),
    )
    if twin:

        def same(model: Any, batch: Any) -> Tensor:
            out = model(batch[0])
            return (2.0 * out.pow(3) - batch[1]).square()

        made.losses, made.outer_loss = same, lambda m, b: same(m, b).mean()
    return made


@habit("C", "the optimizer's decay changes later")
def _decay_later(twin: bool) -> Situation:
    model = Net()
    optimizer = SGD(model.parameters(), lr=0.1)

    def later() -> None:
        optimizer.param_groups[0]["weight_decay"] = 0.7

    return situation(
        model,
        optimizer=optimizer,
        later=later,
        inner=[Inner(p, decay=0.7) for p in model.parameters()],
    )


@habit("C", "cross-entropy replaces squared errors later, with a wrong activation", causes=SECOND)
def _other_loss(twin: bool) -> Situation:
    model, box = filled(nn.Linear(3, 4), scale=1.0), {"kind": "plain"}
    labels = torch.tensor([0, 1, 2, 3, 1, 2])

    def losses(model: Any, batch: Any) -> Tensor:
        out = model(batch[0])
        if box["kind"] == "plain":
            return out.square().sum(1)
        return F.cross_entropy(3.0 * act(twin)(out), labels, reduction="none")

    return situation(
        model,
        losses=losses,
        outer_loss=lambda m, b: losses(m, b).mean(),
        later=lambda: box.update(kind="classes"),
    )
