"""Random models that have several habits at once, for hypothesis."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import SGD, Adam

from _support.habits import Habit, Inner, Situation
from _support.habits.situation import weighter
from habits.kind_b import UNHELD
from habits.kind_e import Frozen, Output, Plain, Reader
from habits.parts import HIDDEN, SIZE, Detached, Tanh, randn
from reweight import Losses

HOLDERS = ("registered", "list", "closure", "helper", "views of a flat parameter", "half a list")
ACTIVATIONS = ("tanh", "wrong", "once", "cdist")
FREEZES = ("nothing", "requires_grad", "lr 0", "lr tensor 0", "hook", "post-accumulate hook")
EXTRAS = ("nothing", "criterion", "criterion, second optimizer", "unheld leaf")
TABLES = ("nothing", "plain attribute", "buffer", "sparse buffer")
WRITES = ("nothing", "batch", "buffer", "frozen parameter", "list", "closure")
BATCHES = ("tuple", "dict", "namespace", "frozen dataclass", "plain object", "output", "numpy")
INPUTS = ("nothing", "tensor", "output", "plain object", "namespace")
LATERS = ("nothing", "unfreeze", "switch")
MODES = ("auto", "auto", "autograd", "func", "finite_difference")


@dataclass(frozen=True)
class Spec:
    """What hypothesis chooses; the first entry of each list is the harmless one."""

    holder: str = "registered"
    activation: str = "tanh"
    freeze: str = "nothing"
    extra: str = "nothing"
    table: str = "nothing"
    write: str = "nothing"
    batch: str = "tuple"
    inputs: str = "nothing"
    later: str = "nothing"
    hvp: str = "auto"
    single: bool = False
    noise: bool = False
    backward: bool = False
    decay: float = 0.0
    optimizer: bool = True
    reduction: str = "mean"
    seed: int = 0

    def __str__(self) -> str:
        usual = Spec()
        own = {n: v for n, v in vars(self).items() if v != getattr(usual, n)}
        return ", ".join(f"{name}={value!r}" for name, value in own.items()) or "nothing"


specs = st.builds(
    Spec,
    holder=st.sampled_from(HOLDERS),
    activation=st.sampled_from(ACTIVATIONS),
    freeze=st.sampled_from(FREEZES),
    extra=st.sampled_from(EXTRAS),
    table=st.sampled_from(TABLES),
    write=st.sampled_from(WRITES),
    batch=st.sampled_from(BATCHES),
    inputs=st.sampled_from(INPUTS),
    later=st.sampled_from(LATERS),
    hvp=st.sampled_from(MODES),
    single=st.booleans(),
    noise=st.booleans(),
    backward=st.booleans(),
    decay=st.sampled_from((0.0, 0.2)),
    optimizer=st.booleans(),
    reduction=st.sampled_from(("mean", "sum")),
    seed=st.integers(0, 50),
)

COLUMNS = torch.tensor([1.0, 0.0, 1.0])

REFUSED = (
    *("hvp=", "follow", "substitut", "in the place", "own copy", "backward()", "in place"),
    *("finite_difference", "writes", "written", "in its place"),
)
CAUSES = (
    *("follow", "substitut", "in the place", "in its place", "own copy", "second derivative"),
    *("not compared", "could not be compared", "finite difference", "no optimizer", "writes"),
)


class Model(nn.Module):
    """Two tensors ``w [4, 3]`` and ``v [4]``, held and used as the spec says."""

    def __init__(self, spec: Spec, twin: bool) -> None:
        super().__init__()
        self.dtype = torch.float32 if spec.single and not twin else torch.float64
        self.spec, self.twin = spec, twin
        w = 0.6 * self.randn(HIDDEN, 3, seed=1)
        v = 0.6 * self.randn(HIDDEN, seed=2)
        holder = "registered" if twin and "views" not in spec.holder else spec.holder
        if "views" in holder:
            self.flat = nn.Parameter(torch.cat([w.reshape(-1), v]))
            views = self.flat[: w.numel()].view(w.shape), self.flat[w.numel() :]
            self.tensors: Callable[[], tuple[Tensor, Tensor]] = lambda: views
        else:
            self.w, self.v = nn.Parameter(w), nn.Parameter(v)
            self.tensors = self._holder(holder)
        self.table: Any = 0.3 * self.randn(3, 3, seed=3)
        if spec.table == "buffer":
            value = self.table
            del self.table
            self.register_buffer("table", value)
        elif spec.table == "sparse buffer":
            value = (self.table * (self.table > 0)).to_sparse()
            del self.table
            self.register_buffer("table", value)
        mean = torch.zeros(3, dtype=self.dtype)
        if spec.write == "buffer":
            self.register_buffer("mean", mean)
        elif spec.write == "frozen parameter":
            self.mean = nn.Parameter(mean, requires_grad=False)
        elif spec.write == "list":
            self.means = [mean]
        self.running = lambda: mean if spec.write == "closure" else None
        self.switched = spec.later != "switch"

    def randn(self, *shape: int, seed: int) -> Tensor:
        return randn(*shape, seed=100 * self.spec.seed + seed, dtype=self.dtype)

    def _holder(self, holder: str) -> Callable[[], tuple[Tensor, Tensor]]:
        w, v = self.w, self.v
        if holder == "list":
            self.held = [w, v]
            return lambda: (self.held[0], self.held[1])
        if holder == "half a list":
            self.held = [w]
            return lambda: (self.held[0], self.v)
        if holder == "closure":
            return lambda: (w, v)
        if holder == "helper":
            self.helper = SimpleNamespace(w=w, v=v)
            return lambda: (self.helper.w, self.helper.v)
        return lambda: (self.w, self.v)

    def state(self) -> Tensor | None:
        """The running mean, where the forward pass writes one."""
        if self.spec.write in ("buffer", "frozen parameter"):
            return self.mean
        return self.means[0] if self.spec.write == "list" else self.running()

    def hidden(self, x: Tensor) -> Tensor:
        w, _ = self.tensors()
        if (mean := self.state()) is not None:
            now = mean.detach().clone()
            with torch.no_grad():
                mean.copy_(0.5 * now + 0.5 * x.detach().mean(0))
            x = x - now
        if self.spec.noise:
            x = x + (0.2 * torch.randn(x.shape, dtype=torch.float64)).to(x.dtype)
        if self.spec.table == "nothing":
            return x @ w.T
        if self.spec.table == "sparse buffer":
            return x @ (w.T + torch.sparse.mm(self.table, w.T))
        return (x + x @ self.table) @ w.T

    def forward(self, x: Tensor) -> Tensor:
        _, v = self.tensors()
        z = self.hidden(x)
        kind = self.spec.activation if self.switched else "tanh"
        if kind == "once":
            z = torch.tanh(z) if self.twin else Tanh.apply(z)
        elif kind == "wrong":
            z = torch.tanh(z) if self.twin else Detached.apply(z)
        elif kind == "cdist":
            z = torch.cdist(torch.tanh(z), self.randn(HIDDEN, HIDDEN, seed=5))
        else:
            z = torch.tanh(z)
        return z @ v


def container(kind: str, x: Any, y: Any) -> Any:
    """Two tensors in a container."""
    made = {
        "tuple": lambda: (x, y),
        "dict": lambda: {"x": x, "y": y},
        "namespace": lambda: SimpleNamespace(x=x, y=y),
        "frozen dataclass": lambda: Frozen(x, y),
        "plain object": lambda: Plain(x, y),
        "output": lambda: Output(x=x, y=y),
        "numpy": lambda: {"x": x.numpy(), "y": y.numpy()},
    }
    return made[kind]()


def read(kind: str, batch: Any) -> tuple[Tensor, Tensor]:
    """The two tensors again."""
    if kind == "tuple":
        x, y = batch
    elif kind in ("dict", "numpy"):
        x, y = batch["x"], batch["y"]
    else:
        x, y = batch.x, batch.y
    return (torch.from_numpy(x), torch.from_numpy(y)) if kind == "numpy" else (x, y)


def assemble(spec: Spec, twin: bool) -> Situation:
    """The situation that a spec describes."""
    model = Model(spec, twin)
    dtype = model.dtype
    gain = torch.full((), 0.2, dtype=dtype, requires_grad=spec.extra != "nothing")
    flat = "views" in spec.holder

    def losses(_: Any, batch: Any) -> Losses:
        x, y = read(spec.batch, batch)
        if spec.write == "batch":
            if twin:
                x = x - 0.25
            else:
                x -= 0.25
        if spec.backward:
            with torch.enable_grad():
                probe = model(x).sum()
            if not twin and probe.requires_grad:
                probe.backward()
        found = (model(x) * gain.exp() - y).square()
        if spec.inputs == "nothing":
            return Losses(found)
        hidden = model.hidden(x)
        inputs = hidden if spec.inputs == "tensor" else container(spec.inputs, hidden, y)
        return Losses(found, inputs=inputs)

    def inputs_of(inputs: Any) -> tuple[Tensor, Tensor]:
        return (inputs, inputs) if spec.inputs == "tensor" else (inputs.x, inputs.y)

    made = weighter(dtype) if spec.inputs == "nothing" else Reader(inputs_of, dtype)
    if isinstance(made, Reader):
        made.strict = not twin

    # What moves, by the groups of the optimizers.
    first: Tensor = model.flat if flat else model.w
    rest = [] if flat else [model.v]
    free: Tensor | None = None
    install: Callable[[], None] = lambda: None  # noqa: E731
    moving = [first, *rest]
    if not flat and spec.freeze == "requires_grad" and spec.later != "unfreeze":
        first.requires_grad_(False)
        moving = rest
    if not flat and spec.freeze.startswith("lr") and spec.optimizer:
        moving = rest
    if spec.freeze.endswith("hook"):
        mask = torch.arange(first.numel()).remainder(3) < 2 if flat else COLUMNS.expand(HIDDEN, 3)
        free = mask.to(dtype)
        kept = free

        def mask_in_place(p: Tensor) -> None:
            assert p.grad is not None
            p.grad.mul_(kept)

        def add_hook() -> None:
            before = first.requires_grad
            first.requires_grad_(True)  # a hook can't be added to a frozen tensor
            if spec.freeze == "hook":
                first.register_hook(lambda grad: grad * kept)
            else:
                first.register_post_accumulate_grad_hook(mask_in_place)
            first.requires_grad_(before)

        install = add_hook

    def at(p: Tensor) -> float:
        return spec.decay if spec.optimizer else 0.0

    inner = [Inner(p, free if p is first else None, at(p)) for p in moving]
    optimizer: Any = None
    held = spec.extra.startswith("criterion")
    if spec.optimizer:
        rate: Any = {"lr 0": 0.0, "lr tensor 0": torch.tensor(0.0)}.get(spec.freeze, 0.1)
        groups: list[dict[str, Any]] = [
            {"params": [first], "lr": 0.1 if flat else rate, "weight_decay": spec.decay}
        ]
        if rest:
            groups.append({"params": rest, "weight_decay": spec.decay})
        if spec.extra == "criterion":
            groups.append({"params": [gain]})
        optimizer = SGD(groups, lr=0.1)
        if spec.extra == "criterion, second optimizer":
            optimizer = [optimizer, Adam([gain])]
        if held:
            inner.append(Inner(gain))

    def later() -> None:
        if spec.later == "unfreeze":
            first.requires_grad_(True)
        model.switched = True

    if spec.later == "unfreeze" and not flat:
        first.requires_grad_(False)
    changes = spec.later == "switch" or (spec.later == "unfreeze" and not flat)
    state = model.state()

    def refresh() -> None:
        if state is not None:
            state.data.zero_()

    def batch(seed: int) -> Any:
        x, y = model.randn(SIZE, 3, seed=seed), model.randn(SIZE, seed=seed + 1)
        return container(spec.batch, x, y)

    return Situation(
        model,
        losses,
        lambda m, b: losses(m, b).weighted.mean(),
        batch(10),
        batch(20),
        inner,
        weighter=made,
        optimizer=optimizer,
        hvp=spec.hvp,
        reduction=spec.reduction,
        refresh=refresh,
        install=install,
        later=later if changes else None,
        watched=(gain, state),
    )


def assembled(spec: Spec) -> Habit:
    """The input that a spec describes."""
    unheld = spec.extra == "unheld leaf" or (spec.extra != "nothing" and not spec.optimizer)
    return Habit(
        "assembled",
        str(spec),
        functools.partial(assemble, spec),
        refused=REFUSED if spec.hvp != "auto" or spec.backward or "views" in spec.holder else (),
        causes=CAUSES,
        named=UNHELD if unheld else (),
    )
