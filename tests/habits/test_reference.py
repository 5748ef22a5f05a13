"""The reference, the comparison of states and the verdict on an outcome are right themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD

from _support.habits import Habit, Inner, Situation, State, outcome, reference
from _support.habits.outcome import NOT_TRUSTED, REFUSED, RIGHT, WRONG
from habits.parts import Detached, Net, Tanh, mean_squared, pair, squared


class Holder:
    __slots__ = ("inside",)

    def __init__(self, inside: Any) -> None:
        self.inside = inside


COUNTER = Holder(0)  # a number that nothing but the losses refers to


def plain(twin: bool = True, act: Callable[[Tensor], Tensor] = torch.tanh) -> Situation:
    model = Net(torch.tanh if twin else act)
    optimizer = SGD(model.parameters(), lr=0.1, weight_decay=0.3)
    inner = [Inner(p, decay=0.3) for p in model.parameters()]
    return Situation(model, squared, mean_squared, pair(1), pair(3), inner, optimizer=optimizer)


def test_the_reference_is_the_solution_with_the_hessian_of_double_backward() -> None:
    situation = plain()
    situation.damping = 5.0
    truth = reference(situation)
    model, (x, y), (dev_x, dev_y) = situation.model, situation.train, situation.dev
    theta = torch.cat([p.detach().reshape(-1) for p in model.parameters()])

    def errors(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return (torch.tanh(x @ theta[:12].view(4, 3).T) @ theta[12:] - y).square()

    with torch.no_grad():
        weights = situation.weighter(errors(theta, x, y), None)
    functional = torch.autograd.functional
    hessian = functional.hessian(lambda t: (weights * errors(t, x, y)).mean(), theta)
    v = functional.jacobian(lambda t: errors(t, dev_x, dev_y).mean(), theta)
    u = torch.linalg.solve(hessian + 5.3 * torch.eye(16, dtype=torch.float64), v)
    influence = -functional.jacobian(lambda t: errors(t, x, y), theta) @ u / 6
    # The error of the reference's differences is of size 1e-10.
    torch.testing.assert_close(truth.influence, influence, rtol=1e-8, atol=1e-9)


def test_the_reference_leaves_constants_out() -> None:
    situation = plain()
    whole = reference(situation).influence
    free = torch.tensor([1.0, 0.0, 1.0])
    situation.inner = [Inner(situation.model.w, free, 0.3), Inner(situation.model.v, decay=0.3)]
    assert (reference(situation).influence - whole).norm() > 1e-2 * whole.norm()


def habit(act: Callable[[Tensor], Tensor], hvp: str = "auto", **expected: Any) -> Habit:
    def build(twin: bool) -> Situation:
        made = plain(twin, act)
        made.hvp = hvp
        return made

    return Habit("test", "an input", build, **expected)


def test_an_outcome_is_right_where_the_influence_is() -> None:
    assert outcome(habit(torch.tanh)).kind == RIGHT


def test_an_outcome_is_wrong_unless_the_cause_is_named() -> None:
    # Mode "autograd" is wrong for it, and the library says so.
    named = habit(Detached.apply, "autograd", causes=("second derivatives",))
    assert outcome(named).kind == NOT_TRUSTED
    assert outcome(habit(Detached.apply, "autograd", causes=("elsewhere",))).kind == WRONG


def test_an_error_of_torch_is_no_refusal() -> None:
    def fails(x: Tensor) -> Tensor:
        return torch.cat([x, x[:, :1]], 1)[:, :7] @ torch.ones(7, 4).double()

    found = outcome(habit(fails, refused=("size", "shape", "mat1")))
    assert found.kind == WRONG and "elsewhere" in found.text


def test_a_refusal_names_what_is_expected() -> None:
    def build(twin: bool) -> Situation:
        made = plain(twin)
        if not twin:
            made.losses = mean_squared
        return made

    assert outcome(Habit("test", "reduced", build, refused=("reduced",))).kind == REFUSED
    assert outcome(Habit("test", "reduced", build, refused=("other",))).kind == WRONG


def counted(model: Any, batch: Any) -> Tensor:
    COUNTER.inside += 1
    return squared(model, batch)


def test_an_impure_call_is_wrong() -> None:
    def build(twin: bool) -> Situation:
        made = plain(twin)
        made.losses, made.watched = counted, COUNTER
        return made

    found = outcome(Habit("test", "impure", build))
    assert found.kind == WRONG and "changed" in found.text


def test_a_state_sees_every_change() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    array, hidden, listed = np.zeros(2), torch.zeros(2), [torch.ones(1)]
    generator, numbers = torch.Generator(), np.random.default_rng(0)
    sparse = torch.eye(2).to_sparse()

    def closure(x: Tensor, bound: Tensor = listed[0]) -> Tensor:
        return x + hidden

    roots = {"all": (model, closure, {"array": array}, Holder(listed), generator, numbers, sparse)}
    weight: Tensor = model[0].weight  # type: ignore[assignment]

    def new_storage() -> None:
        weight.data = weight.data.clone()

    changes: list[Callable[[], Any]] = [
        lambda: weight.data.add_(1.0),
        new_storage,
        lambda: weight.requires_grad_(False),
        lambda: setattr(weight, "grad", torch.ones_like(weight)),
        lambda: weight.grad.add_(1.0),  # type: ignore[union-attr]
        lambda: model(torch.zeros(3, 2)),
        lambda: model.eval(),
        lambda: array.__iadd__(1.0),
        lambda: hidden.add_(1.0),
        lambda: listed[0].mul_(2.0),
        lambda: listed.append(torch.ones(1)),
        lambda: torch.rand(1, generator=generator),
        lambda: numbers.random(),
        lambda: sparse._values().mul_(2.0),
        lambda: torch.rand(1),
        lambda: np.random.rand(),
    ]
    for i, change in enumerate(changes):
        state = State(roots)
        assert not state.differences()
        change()
        assert state.differences(), f"change {i} is not seen"


def test_operations_of_the_inputs_are_what_they_are_said_to_be() -> None:
    x = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    for act in (Tanh.apply, Detached.apply):
        (slope,) = torch.autograd.grad(act(x).sum(), x, create_graph=True)
        torch.testing.assert_close(slope.detach(), 1.0 - x.detach().tanh().square())
    assert not torch.autograd.grad(Detached.apply(x).sum(), x, create_graph=True)[0].requires_grad
