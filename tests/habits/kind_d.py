"""D: losses that change what they find: parameters, buffers, batches, gradients and random state.

All state is compared bit for bit before and after, also after an error in the n-th evaluation.
"""

from __future__ import annotations

import functools
import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.optim import SGD, Adam

from _support.habits import Situation, habit, register
from habits.parts import (
    DIM,
    HIDDEN,
    SIZE,
    Net,
    Tanh,
    filled,
    pair,
    quick,
    randn,
    situation,
    squared,
)
from reweight import Losses


def put_back(*tensors: Tensor) -> Callable[[], None]:
    """Gives tensors the values that they have now, before each evaluation of the reference."""
    kept = [(t, t.detach().clone()) for t in tensors]

    def refresh() -> None:
        for tensor, value in kept:
            tensor.data.copy_(value)

    return refresh


# -- parameters that the forward pass writes ------------------------------------------------------


class Codebook(Net):
    """A frozen table that every training pass moves towards the data."""

    def __init__(self, by: str) -> None:
        super().__init__()
        self.by = by
        self.book = nn.Parameter(randn(3, HIDDEN, seed=12), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        z = x @ self.w.T
        near = torch.cdist(z.detach(), self.book).argmin(1)
        found = (z - self.book[near].clone()) @ self.v
        moved = self.book.detach().clone()
        for k in near.unique():
            moved[k] += 0.3 * (z.detach()[near == k].mean(0) - moved[k])
        if self.by == "no_grad":
            with torch.no_grad():
                self.book.copy_(moved)
        elif self.by == "data":
            self.book.data = moved
        elif self.by == "data.copy_":
            self.book.data.copy_(moved)
        else:
            with torch.no_grad():
                for k in range(3):
                    self.book[k].lerp_(moved[k], 1.0)
        return found


def _codebook(by: str, hvp: str, twin: bool) -> Situation:
    model = Codebook(by)
    return situation(model, refresh=put_back(model.book), hvp=hvp)


for _by in ("no_grad", "data", "data.copy_", "rows"):
    for _hvp in ("auto", "func", "finite_difference"):
        register(
            "D",
            f"a codebook moved by {_by}, hvp={_hvp}",
            functools.partial(_codebook, _by, _hvp),
            refused=("in place", "hvp=", "writes", "written"),
            slow=not quick(_hvp),
        )


class Clamped(Net):
    """Writes its trained weights: clips them, or bounds the norm of rows."""

    def __init__(self, how: str, act: Any = torch.tanh) -> None:
        super().__init__(act)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            if self.how == "clamp":
                self.w.clamp_(-0.5, 0.5)
            elif self.how == "data":
                self.w.data = self.w.data.clamp(-0.5, 0.5)
            elif self.how == "max-norm":
                torch.renorm(self.w, 2, 0, 0.8, out=self.w)
            else:
                self.w.data.mul_(0.9)
        return super().forward(x)


WRITES = ("in place", "writes", "written", "changes", "moved")


def _clamped(how: str, op: bool, hvp: str, twin: bool) -> Situation:
    """The values that the losses use are those after the write; the twin has them already."""
    act = Tanh.apply if op else torch.tanh
    model: Net = Clamped(how, act)
    if twin:
        model(pair(1)[0])
        plain = Net(act)
        plain.load_state_dict(model.state_dict())
        model = plain
    return situation(model, hvp=hvp)


for _how in ("clamp", "data", "max-norm", "shrink"):
    for _hvp, _op in (("auto", False), ("auto", True), ("func", False)):
        register(
            "D",
            f"trained weights written in forward, {_how}{', once' * _op}, hvp={_hvp}",
            functools.partial(_clamped, _how, _op, _hvp),
            refused=(*WRITES, "hvp="),
            causes=WRITES,
            slow=not quick(_hvp),
        )


@habit("D", "an average of the weights is kept in frozen parameters")
def _average_of_weights(twin: bool) -> Situation:
    class Teacher(Net):
        def __init__(self) -> None:
            super().__init__()
            self.teacher = nn.Parameter(self.w.detach().clone() * 0.5, requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                self.teacher.lerp_(torch.full_like(self.teacher, 0.2), 0.1)
            return super().forward(x) + 0.1 * torch.tanh(x @ self.teacher.T).sum(1)

    model = Teacher()
    return situation(model, refresh=put_back(model.teacher))


@habit("D", "requires_grad is switched off in forward")
def _switched_off(twin: bool) -> Situation:
    class Critic(Net):
        def __init__(self) -> None:
            super().__init__()
            self.critic = filled(nn.Linear(1, 1), seed=33)

        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            self.critic.requires_grad_(False)
            return out + 0.3 * torch.tanh(self.critic(out[:, None])).squeeze(-1)

    model = Critic()
    for p in model.critic.parameters():
        p.requires_grad_(not twin)
    return situation(model, inner=[model.w, model.v], optimizer=SGD([model.w, model.v], lr=0.1))


@habit("D", "hooks are registered in forward")
def _hooks(twin: bool) -> Situation:
    class Hooked(Net):
        def forward(self, x: Tensor) -> Tensor:
            if not twin and self.w.requires_grad and self.w.is_leaf:
                self.w.register_hook(lambda grad: None)
            return super().forward(x)

    return situation(Hooked())


# -- buffers --------------------------------------------------------------------------------------


class Counting(Net):
    """A buffer that is written by another name: an alias in a list, a view, a dict."""

    def __init__(self, by: str) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(DIM, dtype=torch.float64))
        self.aliases = {"list": [self.mean], "view": [self.mean[:]], "flat": [self.mean.view(3, 1)]}
        self.by = by

    def forward(self, x: Tensor) -> Tensor:
        found = super().forward(x - self.mean)
        alias = self.mean if self.by == "name" else self.aliases[self.by][0]
        alias.copy_((0.5 * alias.reshape(-1) + 0.5 * x.detach().mean(0)).view(alias.shape))
        return found


def _aliased(by: str, hvp: str, twin: bool) -> Situation:
    model = Counting(by)
    return situation(model, refresh=put_back(model.mean), hvp=hvp)


for _by in ("name", "list", "view", "flat"):
    for _hvp in ("auto", "finite_difference"):
        register(
            "D",
            f"a buffer written by {_by}, hvp={_hvp}",
            functools.partial(_aliased, _by, _hvp),
            slow=not quick(_hvp),
        )


def _sparse(layout: str, write: bool, hvp: str, twin: bool) -> Situation:
    """A sparse buffer, as a graph's adjacency; some passes write its values."""

    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = filled(nn.Embedding(5, DIM), seed=70)
            dense = (randn(5, 5, seed=71) > 0.5).double() + torch.eye(5).double()
            graph = dense.to_sparse() if layout == "coo" else dense.to_sparse_csr()
            self.register_buffer("graph", graph)
            self.net = Net()

        def forward(self, ids: Tensor) -> Tensor:
            if write:
                values = self.graph._values() if layout == "coo" else self.graph.values()
                values.mul_(0.9)
            spread = self.graph @ self.table.weight  # type: ignore[operator]
            return self.net(spread[ids])

    model = Graph()
    ids = torch.tensor([0, 1, 4, 2, 2, 3])
    graph: Any = model.graph
    values = graph._values() if layout == "coo" else graph.values()
    return situation(
        model,
        train=(ids, randn(SIZE, seed=1)),
        dev=(ids.flip(0), randn(SIZE, seed=2)),
        refresh=put_back(values),
        hvp=hvp,
    )


for _layout in ("coo", "csr"):
    for _write in (False, True):
        for _hvp in ("auto", "func"):
            register(
                "D",
                f"a sparse buffer ({_layout}){', written in forward' * _write}, hvp={_hvp}",
                functools.partial(_sparse, _layout, _write, _hvp),
                refused=("hvp=", "sparse"),
                slow=not quick(_hvp),
            )


def _normed(kind: str, old: bool, hvp: str, twin: bool) -> Situation:
    """Spectral norm: every training pass makes a power iteration."""

    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(5)
            norm = nn.utils.spectral_norm if old else parametrizations.spectral_norm
            body = {
                "Linear": lambda: filled(nn.Linear(3, 3)),
                "Embedding": lambda: filled(nn.Embedding(5, 3)),
                "Conv1d": lambda: filled(nn.Conv1d(1, 2, 2)),
            }[kind]()
            self.body = norm(body)
            self.net = filled(nn.Linear(3 if kind != "Conv1d" else 4, 1), seed=50)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.body(x[:, None, :] if kind == "Conv1d" else x)
            return self.net(torch.tanh(hidden.flatten(1)))

    model = Normed()
    with torch.no_grad():
        for p in model.body.parameters():
            p.add_(0.3 * randn(*p.shape, seed=91))  # training has moved on
    x, y = pair(1)
    ids = torch.tensor([0, 1, 4, 2, 2, 3])
    return situation(
        model,
        train=(ids if kind == "Embedding" else x, y),
        dev=(ids.flip(0) if kind == "Embedding" else pair(3)[0], y.flip(0)),
        refresh=put_back(*model.buffers()),
        hvp=hvp,
    )


# A power iteration under no_grad(): the gradients are not quite those of the loss.
DERIVATIVES = ("not its derivatives",)
for _kind in ("Linear", "Embedding", "Conv1d"):
    for _old in (False, True):
        register(
            "D",
            f"{'old ' * _old}spectral_norm of {_kind}",
            functools.partial(_normed, _kind, _old, "auto"),
            causes=DERIVATIVES,
        )
for _hvp in ("func", "finite_difference"):
    register(
        "D",
        f"spectral_norm of Linear, hvp={_hvp}",
        functools.partial(_normed, "Linear", False, _hvp),
        causes=DERIVATIVES,
        slow=not quick(_hvp),
    )


@habit("D", "BatchNorm in a criterion that a closure holds")
def _norm_in_closure(twin: bool) -> Situation:
    model, norm = Net(), nn.BatchNorm1d(1, affine=False).double()

    def losses(model: Any, batch: Any) -> Tensor:
        out = norm(model(batch[0])[:, None]).squeeze(-1)
        return (out - batch[1]).square()

    return situation(
        model, losses=losses, outer_loss=lambda m, b: losses(m, b).mean(), watched=norm
    )


@habit("D", "BatchNorm without a momentum, and dropout")
def _norms(twin: bool) -> Situation:
    model = nn.Sequential(
        filled(nn.Linear(3, 4)),
        nn.BatchNorm1d(4, momentum=None).double(),
        nn.Dropout(0.3),
        filled(nn.Linear(4, 1), seed=50),
    )
    return situation(model)


# -- lazily made layers ---------------------------------------------------------------------------


class Lazily(nn.Module):
    """Makes its second layer when it sees its first batch."""

    def __init__(self) -> None:
        super().__init__()
        self.first = filled(nn.Linear(3, 2))
        self.second: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x))
        if self.second is None:
            self.second = filled(nn.Linear(hidden.shape[1], 1), seed=50)
        return self.second(hidden)


def _lazy(kind: str, twin: bool) -> Situation:
    def build() -> nn.Module:
        if kind == "own":
            return Lazily()
        torch.manual_seed(3)
        if kind == "LazyLinear":
            return nn.Sequential(nn.LazyLinear(2), nn.Tanh(), nn.Linear(2, 1)).double()
        return nn.Sequential(nn.Linear(3, 3), nn.LazyBatchNorm1d(), nn.Linear(3, 1)).double()

    model = build()
    if twin:
        torch.manual_seed(3)
        model(pair(1)[0])
        model = model.apply(_reset)
    # Such a model is made whole by whatever sees a batch first, so its state is not compared.
    return situation(model, pure=False)


def _reset(module: nn.Module) -> None:
    if isinstance(module, nn.BatchNorm1d):
        module.reset_running_stats()


for _kind in ("LazyLinear", "LazyBatchNorm1d", "own"):
    register(
        "D",
        f"an outer step before the first pass of a lazy model, {_kind}",
        functools.partial(_lazy, _kind),
        refused=("lazy", "initialized", "initialised", "first pass", "forward pass"),
        causes=("lazy", "initialized", "initialised", "require a gradient"),
    )


# -- the caller's batch ---------------------------------------------------------------------------


def _normalise(x: Any) -> Any:
    x -= 0.5
    x *= 0.8
    return x


def _nested(seed: int) -> dict[str, Any]:
    x, y = pair(seed)
    return {"views": [x, (x.clone() * 0.5,)], "y": y, "meta": {"step": seed}}


def _in_place(what: str, hvp: str, twin: bool) -> Situation:
    """The losses write into the batch that the caller keeps."""
    model = Net()
    make: Callable[[int], Any] = pair

    def read(batch: Any) -> tuple[Tensor, Tensor]:
        if what == "tensor":
            x, y = batch
            return (x - 0.5) * 0.8 if twin else _normalise(x), y
        if what == "view":
            x, y = batch
            if twin:
                x = torch.cat([x[:1] * 0.3, x[1:]])
            else:
                x[0].mul_(0.3)
            return x, y
        if what == "nested":
            x, y = batch["views"][1][0], batch["y"]
            found = (x - 0.5) * 0.8 if twin else _normalise(x)
            if not twin:
                batch["views"][0].zero_()
                batch["meta"]["step"] += 1
            return found, y
        if what == "replaced entry":
            x = batch["views"][0] * 0.7
            if not twin:
                batch["views"][0] = x
            return x, batch["y"]
        if what == "popped entry":
            y = batch["y"] if twin else batch.pop("y")
            return batch["views"][0], y
        if what == "numpy":
            x = batch[0] * 0.7
            if not twin:
                batch[0][...] = x
            return torch.from_numpy(x), torch.from_numpy(batch[1])
        if what == "shuffle":
            x, y = batch
            order = torch.randperm(SIZE)
            shuffled = x[order]
            if not twin:
                x.copy_(shuffled)
            return shuffled, y
        if what == "mask":
            x, y = batch
            masked = x.masked_fill(torch.rand(x.shape) < 0.3, 0.0)
            if not twin:
                x.copy_(masked)
            return masked, y
        if what == "requires_grad":
            x, y = batch
            if not twin:
                x.requires_grad_(True)
            return x, y
        if what == "namespace":
            x = (batch.x - 0.5) * 0.8 if twin else _normalise(batch.x)
            return x, batch.y
        x, y = batch
        x = x * 0.7
        if not twin:
            batch[0] = x
        return x, y

    if what in ("nested", "replaced entry", "popped entry"):
        make = _nested
    elif what == "numpy":

        def make(seed: int) -> Any:
            return tuple(part.numpy().copy() for part in pair(seed))
    elif what == "list":

        def make(seed: int) -> Any:
            return list(pair(seed))
    elif what == "namespace":

        def make(seed: int) -> Any:
            from types import SimpleNamespace

            x, y = pair(seed)
            return SimpleNamespace(x=x, y=y)

    def losses(model: Any, batch: Any) -> Tensor:
        x, y = read(batch)
        return (model(x) - y).square()

    return situation(
        model,
        losses=losses,
        outer_loss=lambda m, b: losses(m, b).mean(),
        train=make(1),
        dev=make(3),
        hvp=hvp,
    )


for _what in (
    "tensor",
    "view",
    "nested",
    "replaced entry",
    "popped entry",
    "numpy",
    "shuffle",
    "mask",
    "requires_grad",
    "namespace",
    "list",
):
    for _hvp in ("auto", "autograd", "finite_difference"):
        register(
            "D",
            f"the batch is written in place, {_what}, hvp={_hvp}",
            functools.partial(_in_place, _what, _hvp),
            refused=("batch", "hvp="),
            causes=("batch",),
            slow=not quick(_hvp),
        )


@habit("D", "one batch is train and dev, and written in place", refused=("batch",))
def _same_batch(twin: bool) -> Situation:
    made = _in_place("tensor", "auto", twin)
    made.dev = made.train
    return made


# -- state outside of buffers ---------------------------------------------------------------------


def _state(where: str, hvp: str, twin: bool) -> Situation:
    """A running mean that is no buffer, and is written in place."""
    model = Net()
    mean = torch.zeros(DIM, dtype=torch.float64)
    array = np.zeros(DIM)
    queue = deque([mean], maxlen=3)
    if where == "list of the model":
        model.state = [mean]  # type: ignore[assignment]
    elif where == "dict of the model":
        model.state = {"mean": {"now": mean}}  # type: ignore[assignment]
    elif where == "attribute of the model":
        model.state = mean  # type: ignore[assignment]
    elif where == "numpy attribute of the model":
        model.state = array  # type: ignore[assignment]
    elif where == "helper of the model":
        model.state = _Helper(mean)  # type: ignore[assignment]
    elif where == "deque of the model":
        model.state = queue  # type: ignore[assignment]

    def losses(model: Any, batch: Any) -> Tensor:
        x, y = batch
        now = torch.from_numpy(array).clone() if "numpy" in where else queue[-1].clone()
        found = (model(x - now) - y).square()
        moved = 0.5 * now + 0.5 * x.detach().mean(0)
        if "numpy" in where:
            array[...] = moved.numpy()
        elif where == "deque of the model":
            queue.append(moved)
        else:
            mean.copy_(moved)
        return found

    def refresh() -> None:
        mean.zero_()
        array[...] = 0.0
        queue.clear()
        queue.append(mean)

    return situation(
        model,
        losses=losses,
        outer_loss=lambda m, b: losses(m, b).mean(),
        refresh=refresh,
        hvp=hvp,
        watched=(mean, array, queue),
    )


class _Helper:
    def __init__(self, mean: Tensor) -> None:
        self.mean = mean


STATE = ("state", "changes", "writes", "written", "same value")
for _where in (
    "list of the model",
    "dict of the model",
    "attribute of the model",
    "numpy attribute of the model",
    "helper of the model",
    "deque of the model",
    "closure",
    "numpy closure",
):
    for _hvp in ("auto", "finite_difference"):
        register(
            "D",
            f"a running mean in a {_where}, hvp={_hvp}",
            functools.partial(_state, _where, _hvp),
            refused=STATE,
            causes=STATE,
            slow=not quick(_hvp),
        )


@habit("D", "a queue of keys in a dict grows", refused=STATE, causes=STATE)
def _queue(twin: bool) -> Situation:
    model = Net()
    memory: dict[str, list[Tensor]] = {"keys": []}
    model.memory = memory  # type: ignore[assignment]

    def losses(model: Any, batch: Any) -> Tensor:
        out = model(batch[0])
        seen = torch.stack(memory["keys"]).mean() if memory["keys"] else torch.zeros(())
        memory["keys"].append(out.detach().mean())
        return (out - batch[1] + seen).square()

    return situation(
        model,
        losses=losses,
        outer_loss=lambda m, b: losses(m, b).mean(),
        refresh=lambda: memory["keys"].clear(),
    )


# -- losses that differentiate --------------------------------------------------------------------


def _adversarial(by: str, hvp: str, twin: bool) -> Situation:
    """An example is moved along a gradient that the losses take themselves."""
    model = Net()

    def losses(model: Any, batch: Any) -> Tensor:
        x, y = batch
        delta = torch.zeros_like(x).requires_grad_(True)
        with torch.enable_grad():
            loss = (model(x + delta) - y).square().mean()
        if by == "backward" and not twin:
            loss.backward()
            step = delta.grad
        else:
            (step,) = torch.autograd.grad(loss, delta)
        assert step is not None
        moved = (x + 0.1 * step.sign()).detach()
        return (model(moved) - y).square()

    def install() -> None:
        losses(model, pair(7)).sum().backward()  # the first of two micro-batches

    return situation(
        model,
        losses=losses,
        outer_loss=lambda m, b: losses(m, b).mean(),
        install=install,
        hvp=hvp,
        optimizer=Adam(model.parameters()),
    )


for _by in ("backward", "grad"):
    for _hvp in ("auto", "autograd", "func", "finite_difference"):
        register(
            "D",
            f"an adversarial example by {_by}(), hvp={_hvp}",
            functools.partial(_adversarial, _by, _hvp),
            refused=("hvp=", "backward()"),
            slow=not quick(_hvp),
        )


def _penalty(hvp: str, twin: bool) -> Situation:
    """A gradient penalty, through the gradient."""
    model = Net()

    def losses(model: Any, batch: Any) -> Tensor:
        x = batch[0].detach().requires_grad_(True)
        out = model(x)
        (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        return (out - batch[1]).square() + 0.3 * slope.square().sum(1)

    return situation(model, losses=losses, outer_loss=lambda m, b: losses(m, b).mean(), hvp=hvp)


for _hvp in ("auto", "autograd", "func", "finite_difference"):
    register(
        "D",
        f"a gradient penalty, hvp={_hvp}",
        functools.partial(_penalty, _hvp),
        refused=("hvp=",),
        slow=not quick(_hvp),
    )


@habit("D", "the losses train an adversary themselves", refused=STATE, causes=STATE)
def _adversary(twin: bool) -> Situation:
    model, adversary = Net(), filled(nn.Linear(1, 1), seed=33)
    optimizer = SGD(adversary.parameters(), lr=0.1, momentum=0.9)

    def losses(model: Any, batch: Any) -> Tensor:
        x, y = batch
        out = model(x)
        slope, offset = (p.detach().clone() for p in adversary.parameters())
        found = (out - y).square() + 0.2 * torch.tanh(out * slope[0, 0] + offset[0])
        with torch.enable_grad():
            (adversary(out.detach()[:, None]).squeeze(1) - y).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        return found

    put = put_back(*adversary.parameters())

    def refresh() -> None:
        put()
        optimizer.state.clear()

    return situation(
        model,
        losses=losses,
        outer_loss=lambda m, b: losses(m, b).mean(),
        refresh=refresh,
        watched=(adversary, optimizer),
        optimizer=SGD(model.parameters(), lr=0.1),
    )


@habit("D", "an optimizer with momentum steps in hooks of the backward pass")
def _stepping_plainly(twin: bool) -> Situation:
    model = Net()

    def install() -> None:
        for p in model.parameters():
            optimizer = SGD([p], lr=0.5, momentum=0.9)

            def step(p: Tensor, optimizer: SGD = optimizer) -> None:
                optimizer.step()
                optimizer.zero_grad()

            p.register_post_accumulate_grad_hook(step)

    return situation(model, install=install)


@habit("D", "gradients of a micro-batch are kept on parameters, weighter and batch")
def _kept(twin: bool) -> Situation:
    model = Net()
    x, y = pair(1)
    made = situation(model, train=(x.requires_grad_(True), y))

    def install() -> None:
        squared(model, (x, y)).sum().backward()
        for p in made.weighter.parameters():
            p.grad = torch.ones_like(p)

    made.install = install
    return made


# -- random state and modes -----------------------------------------------------------------------


class Noisy(Net):
    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source
        self.generator = torch.Generator().manual_seed(9)
        self.numpy = np.random.default_rng(9)
        self.python = random.Random(9)

    def seed(self) -> None:
        self.generator.manual_seed(9)
        self.numpy = np.random.default_rng(9)
        self.python = random.Random(9)

    def noise(self) -> Tensor:
        if self.source == "torch":
            return torch.randn(DIM, dtype=torch.float64)
        if self.source == "numpy":
            return torch.from_numpy(np.random.randn(DIM))
        if self.source == "python":
            return torch.tensor([random.gauss(0, 1) for _ in range(DIM)], dtype=torch.float64)
        if self.source == "own generator":
            return torch.randn(DIM, dtype=torch.float64, generator=self.generator)
        if self.source == "own numpy generator":
            return torch.from_numpy(self.numpy.standard_normal(DIM))
        return torch.tensor([self.python.gauss(0, 1) for _ in range(DIM)], dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 0.3 * self.noise())


def _noise(source: str, hvp: str, twin: bool) -> Situation:
    model = Noisy(source)
    return situation(model, refresh=model.seed, hvp=hvp)


NOISE = ("random", "generator", "same value", "state")
for _source in (
    "torch",
    "numpy",
    "python",
    "own generator",
    "own numpy generator",
    "own python generator",
):
    for _hvp in ("auto", "func", "finite_difference"):
        register(
            "D",
            f"noise from {_source}, hvp={_hvp}",
            functools.partial(_noise, _source, _hvp),
            refused=NOISE,
            causes=NOISE,
            slow=not quick(_hvp),
        )


@habit("D", "forward switches modes and attributes")
def _modes(twin: bool) -> Situation:
    class Switching(Net):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.4)
            self.calls, self.log = 0, {"last": 0}

        def forward(self, x: Tensor) -> Tensor:
            found = super().forward(self.drop(x))
            self.drop.train(not self.drop.training)
            self.calls += 1
            self.log["last"] = self.calls
            return found

    model = Switching()

    def refresh() -> None:
        model.drop.train()

    return situation(model, refresh=refresh)


# torch's backward pass of eval mode reads the statistics that the pass in train mode has changed.
@habit("D", "the losses set eval mode and leave it", causes=DERIVATIVES)
def _eval(twin: bool) -> Situation:
    model = nn.Sequential(
        filled(nn.Linear(3, 4)), nn.BatchNorm1d(4).double(), filled(nn.Linear(4, 1), seed=50)
    )

    def losses(model: Any, batch: Any) -> Losses:
        model.eval()
        penalty = model(batch[0]).square().mean()
        model.train()
        found = squared(model, batch)
        model.eval()
        return Losses(found, fixed=0.1 * penalty)

    return situation(
        model,
        losses=losses,
        outer_loss=lambda m, b: losses(m, b).weighted.mean(),
        refresh=put_back(*model.buffers()),
    )


@contextmanager
def _default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@habit("D", "evaluated under no_grad by the caller")
def _no_grad(twin: bool) -> Situation:
    return situation(Net(), around=torch.no_grad)


@habit("D", "evaluated with float64 as the default type")
def _default(twin: bool) -> Situation:
    return situation(Net(), around=_default_dtype)


@habit("D", "dropout in functional form, and cross-entropy")
def _functional_dropout(twin: bool) -> Situation:
    model = filled(nn.Linear(3, 4), scale=1.0)
    labels = torch.tensor([0, 1, 2, 3, 1, 2])

    def losses(model: Any, batch: Any) -> Tensor:
        hidden = F.dropout(model(batch[0]), 0.4, training=True)
        return F.cross_entropy(hidden, labels, reduction="none")

    return situation(model, losses=losses, outer_loss=lambda m, b: losses(m, b).mean())
