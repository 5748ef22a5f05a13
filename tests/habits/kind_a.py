"""A: models that do not follow when other tensors are put in the place of their parameters.

Each is combined with an operation that has no double backward, so that the loss has to be
evaluated at other values, and with every mode.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from _support.habits import Situation, register
from habits.parts import (
    DIM,
    HEADS,
    HIDDEN,
    MODES,
    Head,
    Tanh,
    filled,
    mean_squared,
    pair,
    quick,
    rich,
    rotated,
    squared,
    two_tensors,
)

# What the error may name where a model can't be evaluated elsewhere in the mode asked for.
REFUSED = ("hvp=", "finite_difference", "follow", "substitut", "in its place", "own copy")
CAUSES = (
    *("follow", "substitut", "in the place", "in its place", "own copy", "ignore"),
    "second derivatives",  # once_differentiable is silently wrong in mode "autograd"
)


class Direct(nn.Module):
    """The two parameters, and the losses as a function of them: what all others compute too."""

    def __init__(self, head: Head, transform: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        w, c = two_tensors()
        self.w, self.c = nn.Parameter(w), nn.Parameter(c)
        self.head = head
        self.transform = transform or (lambda w: w)

    def forward(self, batch: Any) -> Tensor:
        return self.head(self.transform(self.w), self.c, batch)


class InList(Direct):
    def __init__(self, head: Head) -> None:
        super().__init__(head)
        self.flat = [self.w, self.c]

    def forward(self, batch: Any) -> Tensor:
        return self.head(*self.flat, batch)


class InDict(Direct):
    def __init__(self, head: Head) -> None:
        super().__init__(head)
        self.table = {"w": self.w, "c": self.c}

    def forward(self, batch: Any) -> Tensor:
        return self.head(self.table["w"], self.table["c"], batch)


class InNestedTuple(Direct):
    def __init__(self, head: Head) -> None:
        super().__init__(head)
        self.layers = ((self.w,), {"last": [self.c]})

    def forward(self, batch: Any) -> Tensor:
        return self.head(self.layers[0][0], self.layers[1]["last"][0], batch)


class InClosure(Direct):
    def __init__(self, head: Head) -> None:
        super().__init__(head)
        w, c = self.w, self.c
        self.compute = lambda batch: head(w, c, batch)

    def forward(self, batch: Any) -> Tensor:
        return self.compute(batch)


class InPartial(Direct):
    def __init__(self, head: Head) -> None:
        super().__init__(head)
        self.compute = functools.partial(head, self.w, self.c)

    def forward(self, batch: Any) -> Tensor:
        return self.compute(batch)


class HalfInPartial(Direct):
    """One of two parameters by its name, the other one bound at construction."""

    def __init__(self, head: Head) -> None:
        super().__init__(head)
        self.compute = functools.partial(head, self.w)

    def forward(self, batch: Any) -> Tensor:
        return self.compute(self.c, batch)


class InDefault(Direct):
    def __init__(self, head: Head) -> None:
        super().__init__(head)

        def compute(batch: Any, w: Tensor = self.w, c: Tensor = self.c) -> Tensor:
            return head(w, c, batch)

        self.compute = compute

    def forward(self, batch: Any) -> Tensor:
        return self.compute(batch)


class Weights:
    """Holds tensors, and is no module."""

    def __init__(self, **tensors: Tensor) -> None:
        self.__dict__.update(tensors)


class InHelper(Direct):
    def __init__(self, head: Head) -> None:
        super().__init__(head)
        self.weights = Weights(w=self.w, c=self.c)

    def forward(self, batch: Any) -> Tensor:
        return self.head(self.weights.w, self.weights.c, batch)


class ByWeakReference(Direct):
    def __init__(self, head: Head) -> None:
        super().__init__(head)
        self.references = weakref.ref(self.w), weakref.ref(self.c)

    def forward(self, batch: Any) -> Tensor:
        w, c = (reference() for reference in self.references)
        assert w is not None and c is not None
        return self.head(w, c, batch)


_GLOBAL: dict[int, tuple[Tensor, Tensor]] = {}


class InGlobal(Direct):
    def __init__(self, head: Head) -> None:
        super().__init__(head)
        _GLOBAL.clear()
        _GLOBAL[id(self)] = self.w, self.c

    def forward(self, batch: Any) -> Tensor:
        return self.head(*_GLOBAL[id(self)], batch)


class ViewsOfFlat(nn.Module):
    """One flat parameter; the two tensors are views of it, made once."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        w, c = two_tensors()
        self.flat = nn.Parameter(torch.cat([w.reshape(-1), c.reshape(-1)]))
        self.head = head
        self.views = (
            self.flat[: w.numel()].view(w.shape),
            self.flat[w.numel() :].view(c.shape),
        )

    def forward(self, batch: Any) -> Tensor:
        return self.head(*self.views, batch)


class Transposed(Direct):
    """Makes a transposed view at the first pass and keeps it."""

    def __init__(self, head: Head) -> None:
        super().__init__(head)
        self.kept: dict[str, Tensor] = {}

    def forward(self, batch: Any) -> Tensor:
        if "wt" not in self.kept:
            self.kept["wt"] = self.w.t()
        return self.head(self.kept["wt"].t(), self.c, batch)


class TransposedInAttribute(Direct):
    def __init__(self, head: Head) -> None:
        super().__init__(head)
        self.wt: Tensor | None = None

    def forward(self, batch: Any) -> Tensor:
        if self.wt is None:
            self.wt = self.w.t()
        return self.head(self.wt.t(), self.c, batch)


class FlatWeights(Direct):
    """A property over a list of the names' tensors, made at construction."""

    def __init__(self, head: Head) -> None:
        super().__init__(head)
        self._flat_weights_names = ["w", "c"]
        self._flat_weights = [getattr(self, name) for name in self._flat_weights_names]

    @property
    def all_weights(self) -> list[Tensor]:
        return list(self._flat_weights)

    def forward(self, batch: Any) -> Tensor:
        return self.head(*self.all_weights, batch)


class CallsItself(Direct):
    """``functional_call`` with the parameters of its construction."""

    def __init__(self, head: Head) -> None:
        super().__init__(head)
        self.layer = nn.ParameterDict({"w": self.w})
        self.captured = {"w": self.w}

    def forward(self, batch: Any) -> Tensor:
        class Read(nn.Module):
            def __init__(self, w: Tensor) -> None:
                super().__init__()
                self.w = nn.Parameter(w)

            def forward(self) -> Tensor:
                return self.w

        read = Read(self.w.detach())
        return self.head(torch.func.functional_call(read, self.captured, ()), self.c, batch)


class Enclosing(nn.Module):
    """Keeps its layers in a plain Python list, and their parameters under its own names."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.parts = [Direct(head)]
        self.w, self.c = self.parts[0].w, self.parts[0].c

    def forward(self, batch: Any) -> Tensor:
        return self.parts[0](batch)


HOLDERS: dict[str, Callable[[Head], nn.Module]] = {
    "weights in a list": InList,
    "weights in a dict": InDict,
    "weights in nested tuples": InNestedTuple,
    "weights in a closure": InClosure,
    "weights bound by functools.partial": InPartial,
    "half of the weights bound by functools.partial": HalfInPartial,
    "weights captured by a default argument": InDefault,
    "weights in a helper object that is no module": InHelper,
    "weights by weak references": ByWeakReference,
    "weights in a global": InGlobal,
    "views of a flat parameter": ViewsOfFlat,
    "a transposed view in a dict, made lazily": Transposed,
    "a transposed view in an attribute, made lazily": TransposedInAttribute,
    "a list like nn.LSTM's _flat_weights": FlatWeights,
    "functional_call with captured parameters": CallsItself,
    "modules in a plain list": Enclosing,
}


def losses(model: Any, batch: Any) -> Tensor:
    found: Tensor = model(batch)
    return found


def outer_loss(model: Any, batch: Any) -> Tensor:
    return losses(model, batch).mean()


def situation(model: nn.Module, hvp: str, **changes: Any) -> Situation:
    arguments: dict[str, Any] = {
        "model": model,
        "losses": losses,
        "outer_loss": outer_loss,
        "train": rich(30),
        "dev": rich(40),
        "inner": list(model.parameters()),
        "hvp": hvp,
        **changes,
    }
    return Situation(**arguments)


def _held(holder: Callable[[Head], nn.Module], head: Head, hvp: str, twin: bool) -> Situation:
    return situation((Direct if twin else holder)(head), hvp)


_heads = rotated()
for _name, _holder in HOLDERS.items():
    _head = next(_heads)
    for _hvp in MODES:
        register(
            "A",
            f"{_name}, {_head}, hvp={_hvp}",
            functools.partial(_held, _holder, HEADS[_head], _hvp),
            # A forced mode that can't work for the operation is refused; auto must not be.
            refused=REFUSED if _hvp != "auto" else CAUSES,
            causes=CAUSES,
            slow=not quick(_hvp),
        )


# -- caches ---------------------------------------------------------------------------------------


def unit(w: Tensor) -> Tensor:
    return w / w.norm(dim=1, keepdim=True)


class Unit(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return unit(w)


class Parametrized(nn.Module):
    def __init__(self, head: Head) -> None:
        super().__init__()
        w, c = two_tensors()
        self.layer = nn.Linear(DIM, HIDDEN, bias=False).double()
        with torch.no_grad():
            self.layer.weight.copy_(w)
        parametrize.register_parametrization(self.layer, "weight", Unit(), unsafe=True)
        with torch.no_grad():
            self.layer.parametrizations.weight.original.copy_(w)
        self.c = nn.Parameter(c)
        self.head = head

    def forward(self, batch: Any) -> Tensor:
        return self.head(self.layer.weight, self.c, batch)


class OwnCache(Direct):
    """Normalises once a step and keeps the result with its graph."""

    def __init__(self, head: Head) -> None:
        super().__init__(head)
        self.cache: list[Tensor] = []

    def refresh(self) -> None:
        """What the training loop calls after each step."""
        self.cache.clear()

    def forward(self, batch: Any) -> Tensor:
        if not self.cache:
            self.cache.append(unit(self.w))
        return self.head(self.cache[0], self.c, batch)


class CacheInAttribute(Direct):
    def __init__(self, head: Head) -> None:
        super().__init__(head)
        self.cache: Tensor | None = None

    def refresh(self) -> None:
        self.cache = None

    def forward(self, batch: Any) -> Tensor:
        if self.cache is None:
            self.cache = unit(self.w)
        return self.head(self.cache, self.c, batch)


class MemoisedByCall(Direct):
    """A cache of functools over the module."""

    def __init__(self, head: Head) -> None:
        super().__init__(head)
        self.normed = functools.lru_cache(maxsize=1)(lambda: unit(self.w))

    def forward(self, batch: Any) -> Tensor:
        return self.head(self.normed(), self.c, batch)


def _cached(
    cache: Callable[[Head], nn.Module], head: Head, hvp: str, filled: bool, twin: bool
) -> Situation:
    if twin:
        return situation(Direct(head, unit), hvp)
    made = situation(cache(head), hvp)
    if isinstance(made.model, Parametrized):
        made.around = parametrize.cached
    if filled and not isinstance(made.model, Parametrized):
        made.install = lambda: losses(made.model, made.train)  # type: ignore[assignment]
    elif filled:
        made.later = lambda: None  # a first outer step may fill the cache
    return made


for _name, _cache in {
    "parametrize.cached() open": Parametrized,
    "own cache of a normalised weight in a list": OwnCache,
    "own cache of a normalised weight in an attribute": CacheInAttribute,
    "a normalised weight under lru_cache": MemoisedByCall,
}.items():
    for _filled in (False, True):
        for _hvp in MODES:
            _head = next(_heads) if _hvp != "auto" else "cdist"
            register(
                "A",
                f"{_name}, {'filled' if _filled else 'empty'}, {_head}, hvp={_hvp}",
                functools.partial(_cached, _cache, HEADS[_head], _hvp, _filled),
                refused=(*REFUSED, "cache", "second time", "retain_graph"),
                causes=(*CAUSES, "cache"),
                slow=not quick(_hvp),
            )


# -- storage, recurrent layers, and losses that hold tensors themselves ---------------------------


class TiedByStorage(nn.Module):
    """Two parameters over the same numbers; each is moved by its own step."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        w, c = two_tensors()
        self.w, self.c = nn.Parameter(w), nn.Parameter(c)
        self.again = nn.Parameter(torch.empty_like(w))
        self.again.data = self.w.data
        self.head = head

    def forward(self, batch: Any) -> Tensor:
        return self.head(0.5 * (self.w + self.again), self.c, batch)


for _hvp in MODES:
    register(
        "A",
        f"a weight tied by storage, hvp={_hvp}",
        lambda twin, hvp=_hvp: situation((Direct if twin else TiedByStorage)(HEADS["cdist"]), hvp),
        refused=("storage", "share"),
        slow=not quick(_hvp),
    )


class Recurrent(nn.Module):
    def __init__(self, kind: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.body = filled(kind(DIM, 2, batch_first=True), scale=0.5)
        self.head = filled(nn.Linear(2, 1), seed=50)

    def forward(self, x: Tensor) -> Tensor:
        found, _ = self.body(torch.stack([x, 0.5 * x], 1))
        return self.head(Tanh.apply(found[:, -1]))


def _recurrent(kind: Callable[..., nn.Module], hvp: str, twin: bool) -> Situation:
    model = Recurrent(kind)
    return Situation(
        model,
        squared,
        mean_squared,
        pair(1),
        pair(3),
        list(model.parameters()),
        hvp=hvp,
    )


for _kind in (nn.LSTM, nn.GRU, nn.RNN):
    for _hvp in ("auto", "func", "finite_difference"):
        register(
            "A",
            f"nn.{_kind.__name__} with an operation that is differentiable once, hvp={_hvp}",
            functools.partial(_recurrent, _kind, _hvp),
            refused=REFUSED if _hvp == "func" else (),
            slow=not quick(_hvp),
        )


def _held_by_the_losses(hvp: str, twin: bool) -> Situation:
    """The losses bind the parameters that they penalise when they are made."""
    model = Direct(HEADS["once_differentiable"])
    bound = model.w

    def penalised(model: Any, batch: Any) -> Tensor:
        w = model.w if twin else bound
        return losses(model, batch) + 0.3 * w.square().sum()

    return situation(
        model, hvp, losses=penalised, outer_loss=lambda model, batch: losses(model, batch).mean()
    )


def _functional_losses(hvp: str, twin: bool) -> Situation:
    """The losses call the model with parameters captured when the losses were made."""
    model = Direct(HEADS["ctc_loss"])
    captured = dict(model.named_parameters())

    def called(model: Any, batch: Any) -> Tensor:
        if twin:
            return losses(model, batch)
        found: Tensor = torch.func.functional_call(model, captured, (batch,))
        return found

    return situation(
        model, hvp, losses=called, outer_loss=lambda model, batch: called(model, batch).mean()
    )


def _fast_weights(hvp: str, twin: bool) -> Situation:
    """The losses make one step of descent themselves, and are those after it."""
    model = Direct(HEADS["once_differentiable"])

    def after_a_step(model: Any, batch: Any) -> Tensor:
        moved = {n: p * 0.9 for n, p in model.named_parameters()}
        found: Tensor = torch.func.functional_call(model, moved, (batch,))
        return found

    return situation(
        model, hvp, losses=after_a_step, outer_loss=lambda m, b: after_a_step(m, b).mean()
    )


def _other_copy(hvp: str, twin: bool) -> Situation:
    """The losses use the model that they have captured and not the one that they are given."""
    model = InList(HEADS["cdist"])
    box = SimpleNamespace(model=model)

    def captured(_: Any, batch: Any) -> Tensor:
        return losses(box.model, batch)

    return situation(
        model, hvp, losses=captured, outer_loss=lambda _, batch: captured(_, batch).mean()
    )


for _name, _build in {
    "losses that hold a parameter themselves": _held_by_the_losses,
    "functional_call inside the losses with captured parameters": _functional_losses,
    "functional_call inside the losses with moved parameters": _fast_weights,
    "losses that use a captured model": _other_copy,
}.items():
    for _hvp in MODES:
        register(
            "A",
            f"{_name}, hvp={_hvp}",
            functools.partial(_build, _hvp),
            refused=REFUSED if _hvp != "auto" else CAUSES,
            causes=CAUSES,
            slow=not quick(_hvp),
        )
