"""B: the inner variables are what the optimizers hold and move, wherever these tensors live."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, SparseAdam
from torch.optim.lr_scheduler import LambdaLR

from _support.habits import Inner, Situation, habit, register
from _support.habits.situation import weighter
from habits import parts
from habits.parts import HIDDEN, SIZE, Net, filled, mean_squared, pair, randn, squared
from reweight import Losses, SampleWeighter

# A leaf that no optimizer holds.
UNHELD = ("no optimizer", "not hold", "not held", "constant")
HOOK = ("hook",)


def situation(model: nn.Module, **changes: Any) -> Situation:
    """Squared errors of a network, all parameters under one SGD with decay 0.1."""
    arguments = {"inner": [Inner(p, decay=0.1) for p in model.parameters()], **changes}
    if "optimizer" not in changes:
        arguments["optimizer"] = SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    return parts.situation(model, **arguments)


# -- tensors outside of the model -----------------------------------------------------------------


class Criterion(nn.Module):
    """Squared errors with a learned temperature and offset."""

    def __init__(self) -> None:
        super().__init__()
        self.log_temperature = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
        self.offset = nn.Parameter(torch.tensor([0.2], dtype=torch.float64))

    def forward(self, out: Tensor, y: Tensor) -> Tensor:
        return (out * self.log_temperature.exp() + self.offset - y).square()


def _criterion(two: bool, named: bool, twin: bool) -> Situation:
    model, criterion = Net(), Criterion()

    def losses(model: Any, batch: Any) -> Tensor:
        found: Tensor = criterion(model(batch[0]), batch[1])
        return found

    optimizer: Any = SGD([*model.parameters(), *criterion.parameters()], lr=0.1)
    if two:
        optimizer = [Adam(model.parameters()), SGD(criterion.parameters(), lr=0.5)]
    inner = [*model.parameters(), *criterion.parameters()]
    return situation(
        model,
        losses=losses,
        outer_loss=lambda m, b: losses(m, b).mean(),
        optimizer=optimizer,
        inner=inner,
        watched=criterion,
        hvp="func" if named else "auto",
    )


register(
    "B", "a criterion's parameters, one optimizer", functools.partial(_criterion, False, False)
)
register(
    "B", "a criterion's parameters, two optimizers", functools.partial(_criterion, True, False)
)
register(
    "B",
    "a criterion's parameters, two optimizers, hvp=func",
    functools.partial(_criterion, True, True),
)


@habit("B", "class weights that are learned")
def _class_weights(twin: bool) -> Situation:
    model = filled(nn.Linear(3, 4))
    raw = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 3, 1, 2])

    def losses(model: Any, batch: Any) -> Tensor:
        each = F.cross_entropy(model(batch[0]), labels, reduction="none")
        return each * raw.exp()[labels] - raw[labels]

    return situation(
        model,
        losses=losses,
        outer_loss=lambda m, b: F.cross_entropy(m(b[0]), labels) + raw.square().sum() + raw[0],
        optimizer=[SGD(model.parameters(), lr=0.1), SGD([raw], lr=0.01, weight_decay=0.2)],
        inner=[*model.parameters(), Inner(raw, decay=0.2)],
        watched=raw,
    )


def _centres(sparse: bool, twin: bool) -> Situation:
    model = filled(nn.Linear(3, 2))
    centres = filled(nn.Embedding(4, 2, sparse=sparse), seed=40)
    labels = torch.tensor([0, 1, 2, 1, 1, 2])

    def losses(model: Any, batch: Any) -> Tensor:
        return (model(batch[0]) - centres(labels)).square().sum(1)

    held = SparseAdam if sparse else Adam
    return situation(
        model,
        losses=losses,
        outer_loss=lambda m, b: (m(b[0]) - centres(labels)).abs().pow(3).sum(1).mean(),
        optimizer=[SGD(model.parameters(), lr=0.1), held(centres.parameters(), lr=0.5)],
        inner=[*model.parameters(), *centres.parameters()],
        watched=centres,
    )


register("B", "a table of a centre loss", functools.partial(_centres, False))
register("B", "a sparse table of a centre loss under SparseAdam", functools.partial(_centres, True))


@habit("B", "a second module that the losses capture")
def _second_module(twin: bool) -> Situation:
    model, head = filled(nn.Linear(3, 4)), filled(nn.Linear(4, 1), seed=50)

    def losses(model: Any, batch: Any) -> Tensor:
        found = head(torch.tanh(model(batch[0]))).squeeze(-1)
        return (found - batch[1]).square()

    optimizer = AdamW(
        [{"params": model.parameters(), "weight_decay": 0.3}, {"params": head.parameters()}],
        weight_decay=0.05,
    )
    return situation(
        model,
        losses=losses,
        outer_loss=lambda m, b: losses(m, b).mean(),
        optimizer=optimizer,
        inner=[
            *(Inner(p, decay=0.3) for p in model.parameters()),
            *(Inner(p, decay=0.05) for p in head.parameters()),
        ],
        watched=head,
    )


class LearnedBuffer(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", (0.3 * randn(HIDDEN, seed=60)).requires_grad_())

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.w.T + self.shift) @ self.v


def _buffer(held: bool, twin: bool) -> Situation:
    model = LearnedBuffer()
    if twin or held:
        params = [*model.parameters(), *([model.shift] if held else [])]
    else:
        params = list(model.parameters())
    return situation(
        model,
        optimizer=SGD(params, lr=0.1, weight_decay=0.1),
        inner=[Inner(p, decay=0.1) for p in params],
    )


register("B", "a learned buffer", functools.partial(_buffer, True))
register("B", "a buffer that no optimizer holds", functools.partial(_buffer, False), named=UNHELD)


@habit("B", "a plain attribute that is learned")
def _plain_attribute(twin: bool) -> Situation:
    model = Net()
    model.extra = (0.3 * randn(DIM_OUT, seed=61)).requires_grad_()  # type: ignore[assignment]

    def losses(model: Any, batch: Any) -> Tensor:
        return (model(batch[0]) * model.extra[0] + model.extra[1] - batch[1]).square()

    return situation(
        model,
        losses=losses,
        outer_loss=lambda m, b: losses(m, b).mean(),
        optimizer=SGD([*model.parameters(), model.extra], lr=0.1),  # type: ignore[list-item]
        inner=[*model.parameters(), model.extra],  # type: ignore[list-item]
    )


DIM_OUT = 2


@habit("B", "a plain tensor outside of the model, in the outer loss only by the losses")
def _plain_tensor(twin: bool) -> Situation:
    model = Net()
    bias = torch.full((), 0.4, dtype=torch.float64, requires_grad=True)

    def losses(model: Any, batch: Any) -> Losses:
        return Losses((model(batch[0]) + bias - batch[1]).square(), fixed=0.5 * bias.pow(4))

    return situation(
        model,
        losses=losses,
        outer_loss=mean_squared,
        optimizer=SGD([*model.parameters(), bias], lr=0.1, momentum=0.9, nesterov=True),
        inner=[*model.parameters(), bias],
        watched=bias,
    )


@habit("B", "all inner variables are plain tensors, the model has none")
def _none_of_the_model(twin: bool) -> Situation:
    class Bare(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x @ w.T) @ v

    w = (0.7 * randn(HIDDEN, 3, seed=10)).requires_grad_()
    v = (0.7 * randn(HIDDEN, seed=11)).requires_grad_()
    return situation(Bare(), optimizer=Adam([w, v]), inner=[w, v], watched=[w, v])


# -- several optimizers and groups ----------------------------------------------------------------


@habit("B", "two optimizers with different decay")
def _two(twin: bool) -> Situation:
    model = Net()
    optimizers = SGD([model.w], lr=0.05, weight_decay=0.4), AdamW([model.v], weight_decay=0.1)
    return situation(
        model,
        optimizer=optimizers,
        inner=[Inner(model.w, decay=0.4), Inner(model.v, decay=0.1)],
    )


@habit("B", "three optimizers, one of which is for a head that the losses do not reach")
def _three(twin: bool) -> Situation:
    model = Net()
    model.other = filled(nn.Linear(2, 2))  # type: ignore[assignment]
    optimizers = [
        SGD([model.w], lr=0.05),
        Adam([model.v]),
        SGD(model.other.parameters(), lr=0.1, weight_decay=1.0),  # type: ignore[union-attr]
    ]
    return situation(model, optimizer=optimizers, inner=[model.w, model.v])


@habit("B", "an optimizer that holds parameters that the losses do not reach")
def _unreached(twin: bool) -> Situation:
    model, elsewhere = Net(), nn.Linear(3, 3).double()
    optimizer = SGD([*model.parameters(), *elsewhere.parameters()], lr=0.1, weight_decay=0.1)
    return situation(model, optimizer=optimizer, watched=elsewhere)


@habit("B", "parameters that the outer loss alone reaches")
def _outer_alone(twin: bool) -> Situation:
    model = Net()
    model.scale = nn.Parameter(torch.tensor(1.3, dtype=torch.float64))  # type: ignore[assignment]
    return situation(model, outer_loss=lambda m, b: (m(b[0]) * m.scale - b[1]).square().mean())


def _group_at_zero(lr: Any, twin: bool) -> Situation:
    model = Net()
    optimizer = SGD(
        [{"params": [model.w], "lr": lr}, {"params": [model.v]}], lr=0.1, weight_decay=0.1
    )
    return situation(model, optimizer=optimizer, inner=[Inner(model.v, decay=0.1)])


register("B", "a group with lr 0", functools.partial(_group_at_zero, 0.0))
register("B", "a group with lr tensor(0.)", functools.partial(_group_at_zero, torch.tensor(0.0)))


def _schedule(up: bool, by: str, twin: bool) -> Situation:
    """The rate of a group is 0 from the second step on, or until then."""
    model = Net()
    optimizer = SGD(
        [{"params": [model.w], "lr": 0.1}, {"params": [model.v], "lr": 0.1}], weight_decay=0.1
    )
    rate = (lambda step: 1.0 if step else 0.0) if up else (lambda step: 0.0 if step else 1.0)

    def later() -> None:
        if by == "schedule":
            for p in model.parameters():
                p.grad = None
            optimizer.step()
            schedule.step()
        else:
            optimizer.param_groups[0]["lr"] = 0.1 if up else 0.0

    if by == "schedule":
        schedule = LambdaLR(optimizer, [rate, lambda step: 1.0])
    else:
        optimizer.param_groups[0]["lr"] = 0.0 if up else 0.1
    moving = [model.w, model.v] if up else [model.v]
    return situation(
        model, optimizer=optimizer, inner=[Inner(p, decay=0.1) for p in moving], later=later
    )


for _up in (False, True):
    for _by in ("schedule", "hand"):
        register(
            "B",
            f"a group's lr set {'from 0' if _up else 'to 0'} later, by {_by}",
            functools.partial(_schedule, _up, _by),
        )


@habit("B", "the only optimizer has lr 0", refused=("lr", "learning rate", "moves"))
def _all_at_zero(twin: bool) -> Situation:
    model = Net()
    optimizer = SGD(model.parameters(), lr=0.1 if twin else 0.0, weight_decay=0.1)
    return situation(model, optimizer=optimizer)


@habit("B", "a group that is added later")
def _added(twin: bool) -> Situation:
    model = Net()
    model.w.requires_grad_(False)
    optimizer = SGD([model.v], lr=0.1, weight_decay=0.1)

    def later() -> None:
        model.w.requires_grad_(True)
        optimizer.add_param_group({"params": [model.w], "weight_decay": 0.5})

    return situation(
        model,
        optimizer=optimizer,
        inner=[Inner(model.w, decay=0.5), Inner(model.v, decay=0.1)],
        later=later,
    )


def _frozen_between(later_on: bool, twin: bool) -> Situation:
    model = Net()
    model.w.requires_grad_(not later_on)
    moving = [model.w, model.v] if later_on else [model.v]
    return situation(
        model,
        inner=[Inner(p, decay=0.1) for p in moving],
        later=lambda: model.w.requires_grad_(later_on),  # type: ignore[arg-type, return-value]
    )


register("B", "parameters unfrozen between two steps", functools.partial(_frozen_between, True))
register("B", "parameters frozen between two steps", functools.partial(_frozen_between, False))


@habit("B", "maximize=True", refused=("maximize",))
def _maximised(twin: bool) -> Situation:
    model = Net()
    return situation(
        model, optimizer=SGD(model.parameters(), lr=0.1, weight_decay=0.1, maximize=not twin)
    )


# -- hooks ----------------------------------------------------------------------------------------


class Lookup(nn.Module):
    """A table, a layer and a vector."""

    def __init__(self, sparse: bool = False) -> None:
        super().__init__()
        self.table = filled(nn.Embedding(5, 3, sparse=sparse), seed=70)
        self.net = Net()

    def forward(self, ids: Tensor) -> Tensor:
        found: Tensor = self.net(self.table(ids))
        return found


ROWS = torch.tensor([1.0, 1, 0, 0, 1], dtype=torch.float64)[:, None]
COLUMNS = torch.tensor([1.0, 0, 1], dtype=torch.float64)


def _ids(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(5, (SIZE,), generator=generator), randn(SIZE, seed=seed)


def _rows(post: bool, hvp: str, twin: bool) -> Situation:
    """Rows of a table frozen by a hook."""
    model = Lookup()
    weight: Tensor = model.table.weight  # type: ignore[assignment]

    def install() -> None:
        if post:

            def zero(p: Tensor) -> None:
                assert p.grad is not None
                p.grad.mul_(ROWS)

            weight.register_post_accumulate_grad_hook(zero)
        else:
            weight.register_hook(lambda grad: grad * ROWS)

    return situation(
        model,
        train=_ids(1),
        dev=_ids(2),
        optimizer=SGD(model.parameters(), lr=0.1),
        inner=[Inner(weight, free=ROWS), *model.net.parameters()],
        install=install,
        hvp=hvp,
    )


for _post in (False, True):
    for _hvp in ("auto", "func", "finite_difference"):
        register(
            "B",
            f"rows frozen by a {'post-accumulate ' * _post}hook, hvp={_hvp}",
            functools.partial(_rows, _post, _hvp),
        )


def _hooked(
    hook: Callable[[Tensor], Tensor | None], free: Tensor | None, decay: bool, twin: bool
) -> Situation:
    model = Net()
    return situation(
        model,
        optimizer=SGD(model.parameters(), lr=0.1, weight_decay=0.1 * decay),
        inner=[Inner(model.w, free, 0.1 * decay), Inner(model.v, decay=0.1 * decay)],
        install=lambda: model.w.register_hook(hook),  # type: ignore[arg-type, return-value]
    )


def _in_place(grad: Tensor) -> Tensor:
    grad = grad.clone()
    grad[:, 1] = 0.0
    return grad


def _triangle(grad: Tensor) -> Tensor:
    return grad.tril()


def _clip(grad: Tensor) -> Tensor:
    return grad * (0.01 / grad.norm()).clamp(max=1.0)


def _clamp(grad: Tensor) -> Tensor:
    return grad.clamp(-0.01, 0.01)


def _watch(grad: Tensor) -> None:
    assert grad.shape == (HIDDEN, 3)


def _no_nan(grad: Tensor) -> Tensor:
    return torch.nan_to_num(grad)


for _name, _hook, _free in (
    ("half of a matrix frozen by a hook", lambda g: g * COLUMNS, COLUMNS),
    ("a column frozen by a hook that writes", _in_place, COLUMNS),
    ("a triangle frozen by a hook", _triangle, torch.ones(HIDDEN, 3).tril()),
    ("a hook that freezes and rescales", lambda g: 0.1 * g * COLUMNS, COLUMNS),
    ("a hook that freezes all of a matrix", torch.zeros_like, torch.zeros(HIDDEN, 3)),
    ("a hook that clips the norm", _clip, None),
    ("a hook that clamps", _clamp, None),
    ("a hook that rescales rows", lambda g: g * torch.arange(1.0, 5.0)[:, None], None),
    ("a hook that only looks", _watch, None),
    ("a hook that replaces NaN", _no_nan, None),
    ("a hook that takes the sign", torch.sign, None),
):
    register("B", _name, functools.partial(_hooked, _hook, _free, False))
for _name, _hook in (
    ("a hook that flips the sign", torch.neg),
    ("a hook that flips the sign of a column", lambda g: g * (2.0 * COLUMNS - 1.0)),
    ("a hook that projects", lambda g: g - g.mean(0, keepdim=True)),
    ("a hook that adds a constant", lambda g: g + 0.1),
):
    # What the optimizer descends then is not the loss: the reference is the problem without it.
    register("B", _name, functools.partial(_hooked, _hook, None, False), causes=HOOK, named=HOOK)
register(
    "B",
    "a frozen column under weight decay, which moves it",
    functools.partial(_hooked, lambda g: g * COLUMNS, COLUMNS, True),
)


@habit("B", "a hook that freezes on the tensor that the model computes with")
def _not_on_a_leaf(twin: bool) -> Situation:
    class Masked(Net):
        def forward(self, x: Tensor) -> Tensor:
            w = self.w * 1.0
            if not twin and w.requires_grad:
                w.register_hook(lambda grad: grad * COLUMNS)
            return torch.tanh(x @ w.T) @ self.v

    model = Masked()
    # Its effect is in the gradient of every evaluation: that of the loss with constant columns.
    return situation(
        model,
        optimizer=SGD(model.parameters(), lr=0.1),
        inner=[Inner(model.w, COLUMNS), model.v],
    )


# -- leaves that no optimizer holds, and the choice by name ---------------------------------------


@habit("B", "a leaf outside that no optimizer holds", named=UNHELD)
def _unheld(twin: bool) -> Situation:
    model = Net()
    scale = torch.full((), 1.2, dtype=torch.float64, requires_grad=True)

    def losses(model: Any, batch: Any) -> Tensor:
        return (model(batch[0]) * scale - batch[1]).square()

    return situation(
        model, losses=losses, outer_loss=lambda m, b: losses(m, b).mean(), watched=scale
    )


@habit("B", "a parameter of the model that no optimizer holds", named=UNHELD)
def _unheld_parameter(twin: bool) -> Situation:
    model = Net()
    return situation(
        model,
        optimizer=SGD([model.v], lr=0.1, weight_decay=0.1),
        inner=[Inner(model.v, decay=0.1)],
    )


@habit("B", "a leaf outside and no optimizer", named=UNHELD)
def _no_optimizer(twin: bool) -> Situation:
    model, head = Net(), filled(nn.Linear(1, 1))

    def losses(model: Any, batch: Any) -> Tensor:
        found = head(model(batch[0])[:, None]).squeeze(-1)
        return (found - batch[1]).square()

    return situation(
        model,
        losses=losses,
        outer_loss=lambda m, b: losses(m, b).mean(),
        optimizer=None,
        inner=list(model.parameters()),
        watched=head,
    )


@habit("B", "a batch that requires a gradient")
def _leaf_in_the_batch(twin: bool) -> Situation:
    model = Net()
    x, y = pair(1)
    return situation(model, train=(x.requires_grad_(), y))


@habit("B", "inner_params leaves out what an optimizer holds")
def _by_name(twin: bool) -> Situation:
    model = Net()
    return situation(
        model, inner_params=lambda name: name == "v", inner=[Inner(model.v, decay=0.1)]
    )


@habit("B", "a frozen parameter that the optimizer holds")
def _frozen_but_held(twin: bool) -> Situation:
    model = Net()
    model.w.requires_grad_(False)
    return situation(model, inner=[Inner(model.v, decay=0.1)])


@habit(
    "B",
    "parameters replaced after the optimizer was made",
    refused=("optimizer",),
    causes=UNHELD,
)
def _replaced(twin: bool) -> Situation:
    model = Net()
    optimizer = SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    if not twin:
        model.w = nn.Parameter(model.w.detach().clone())
        model.v = nn.Parameter(model.v.detach().clone())
    return situation(model, optimizer=optimizer)


# -- the weighter, and shared tensors -------------------------------------------------------------


class WithWeighter(Net):
    def __init__(self) -> None:
        super().__init__()
        self.weighter = weighter()


def _submodule(optimizer: bool, hvp: str, twin: bool) -> Situation:
    model = WithWeighter()
    own = [model.w, model.v]
    return situation(
        model,
        weighter=model.weighter,
        optimizer=SGD(own, lr=0.1, weight_decay=0.1) if optimizer else None,
        inner=[Inner(p, decay=0.1 * optimizer) for p in own],
        hvp=hvp,
    )


for _optimizer in (False, True):
    for _hvp in ("auto", "func", "finite_difference"):
        register(
            "B",
            f"the weighter is a submodule, with{'' if _optimizer else 'out'} an optimizer, {_hvp}",
            functools.partial(_submodule, _optimizer, _hvp),
        )


@habit("B", "the optimizer also holds the weighter", refused=("weighter",), causes=("weighter",))
def _holds_the_weighter(twin: bool) -> Situation:
    model = WithWeighter()
    return situation(
        model,
        weighter=model.weighter,
        optimizer=SGD(model.parameters(), lr=0.1, weight_decay=0.1),
        inner=[Inner(p, decay=0.1) for p in (model.w, model.v)],
    )


class Reader(SampleWeighter):
    """Reads the model by a module that it shares with it."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part
        self.gain = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, losses: Tensor, inputs: Any) -> Tensor:
        with torch.no_grad():
            seen = self.part(inputs).mean(1)
        return torch.exp(self.gain * seen)


@habit("B", "a weighter that reads a module of the model", refused=("share", "weighter's"))
def _shares(twin: bool) -> Situation:
    part = filled(nn.Linear(3, 2))
    model = nn.Sequential(part, nn.Tanh(), filled(nn.Linear(2, 1), seed=30))

    def losses(model: Any, batch: Any) -> Losses:
        return Losses(squared(model, batch), inputs=batch[0])

    return situation(model, weighter=Reader(part), losses=losses)


def _same_storage(view: bool, twin: bool) -> Situation:
    a = nn.Linear(3, 3, bias=False).double()
    b = nn.Linear(3, 3, bias=False).double()
    filled(a)
    if view:
        b.weight = nn.Parameter(a.weight.data.view(3, 3))
    elif not twin:
        b.weight.data = a.weight.data
    model = nn.Sequential(a, nn.Tanh(), b)
    return situation(
        model,
        losses=lambda m, batch: (m(batch[0]).sum(1) - batch[1]).square(),
        outer_loss=lambda m, batch: (m(batch[0]).sum(1) - batch[1]).square().mean(),
    )


for _view in (False, True):
    register(
        "B",
        f"two parameters over one storage, by {'a view' if _view else '.data'}",
        functools.partial(_same_storage, _view),
        refused=("storage", "share", "memory"),
    )


@habit("B", "two parameters over overlapping parts of one storage", refused=("storage", "memory"))
def _overlap(twin: bool) -> Situation:
    model = Net()
    flat = randn(20, seed=80)
    model.w.data, model.v.data = flat[:12].view(4, 3), (flat[15:19] if twin else flat[10:14])
    return situation(model)


@habit("B", "two parameters over separate parts of one storage")
def _side_by_side(twin: bool) -> Situation:
    model = Net()
    flat = 0.7 * randn(16, seed=80)
    model.w.data, model.v.data = flat[:12].view(4, 3), flat[12:]
    return situation(model)


@habit("B", "one parameter by two names")
def _tied(twin: bool) -> Situation:
    a = filled(nn.Linear(3, 3))
    model = nn.Sequential(a, nn.Tanh(), a)
    return situation(
        model,
        losses=lambda m, batch: (m(batch[0]).sum(1) - batch[1]).square(),
        outer_loss=lambda m, batch: (m(batch[0]).sum(1) - batch[1]).square().mean(),
    )
