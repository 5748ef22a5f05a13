"""What goes wrong on one process is every process's word, and none waits for another in vain."""

from __future__ import annotations

import copy
import math
import os
import signal
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.autograd.function import once_differentiable

import reweight
from _support.processes import Processes, Raised, values
from reweight import (
    ConjugateGradient,
    GroupWeighter,
    Identity,
    ImplicitHypergradient,
    Losses,
    LossWeighter,
    Neumann,
)

Batch = tuple[Tensor, Tensor]


def samples(rank: int, size: int, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(12, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(12, generator=generator, dtype=torch.float64)
    own = slice(rank * 12 // size, (rank + 1) * 12 // size)
    return x[own], y[own]


class Unprintable(Exception):
    def __str__(self) -> str:
        raise ValueError


class Habit:
    """The losses of a linear model, which have a habit on the last of several processes."""

    def __init__(self, kind: str, rank: int, size: int) -> None:
        self.kind = kind if rank == size - 1 or kind.startswith("all ") else ""
        self.calls = 0

    def losses(self, model: nn.Module, batch: Batch) -> Losses:
        x, y = batch
        output = model(x).squeeze(-1)
        if self.kind == "raises":
            raise KeyError("no such column")
        if self.kind == "raises an odd text":
            raise KeyError("no file \udcff")  # as of a name that is not UTF-8
        self.calls += 1
        if self.kind == "only once" and self.calls > 1:
            raise KeyError("the batch was used up")
        if self.kind == "raises without words":
            raise Unprintable
        if self.kind == "is not finite":
            output = output * math.nan
        if self.kind.endswith("no second derivative"):
            output = FirstDerivativeOnly.apply(output)  # type: ignore[no-untyped-call]
        if self.kind.endswith("no forward derivative"):
            output = NoForward.apply(output)  # type: ignore[no-untyped-call]
        if self.kind == "straight-through":
            output = output + (output.round() - output).detach()
        if self.kind == "kills":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.kind == "one loss":
            return Losses((output - y).square().mean())
        groups = (x[:, 0] > 0).long()
        return Losses((output - y).square() + 0.1 * output.sin(), inputs=groups)

    def dev_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x, y = batch
        loss = (model(x).squeeze(-1) - y).abs().mean()
        if self.kind == "outer raises":
            raise RuntimeError("a file is gone")
        return loss * math.inf if self.kind == "outer is not finite" else loss


class FirstDerivativeOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        slope: Tensor = grad * (1.0 - x.tanh().square())
        return slope


class NoForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        slope: Tensor = grad * (1.0 - x.tanh().square())
        return slope


def wrapped(habit: Habit, strategy: ImplicitHypergradient, groups: bool = True) -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    weighter = GroupWeighter(2) if groups else LossWeighter(4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    return reweight.wrap(
        model, weighter.double(), habit.losses, habit.dev_loss, optimizer, strategy
    )


def step(rank: int, size: int, kind: str, strategy: ImplicitHypergradient) -> dict[str, Any]:
    """An outer step with the habit, and one without it."""
    warnings.simplefilter("ignore")
    habit = Habit(kind, rank, size)
    rw = wrapped(habit, strategy)
    train, dev = samples(rank, size), samples(rank, size, 1)
    found: dict[str, Any] = {}
    try:
        result = rw.hypergradient(train, dev)
    except Exception as error:
        try:
            found["error"] = f"{type(error).__name__}: {error}"
        except ValueError:
            found["error"] = "Unprintable, whose message can't be made"
    else:
        found["grads"] = torch.cat([g.flatten() for g in result.grads.values()])
        found["info"] = (result.info.num_hvps, result.info.hvp_mode, result.info.trustworthy)
        found["caveat"], found["comparison"] = result.info.caveat, str(result.info.comparison)
    habit.kind = ""
    found["after"] = torch.cat([g.flatten() for g in rw.hypergradient(train, dev).grads.values()])
    return found


EXACT = ImplicitHypergradient(ConjugateGradient(30), damping=1.0)
FIRST = ImplicitHypergradient(Identity())
SERIES = ImplicitHypergradient(Neumann(3))


@pytest.mark.parametrize("strategy", [EXACT, FIRST, SERIES], ids=["CG", "first order", "Neumann"])
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("raises", "no such column"),
        ("raises an odd text", "no file \\udcff"),
        ("raises without words", "Unprintable, whose message can't be made"),
        ("is not finite", "NaN"),
        ("one loss", "reduced"),
        ("outer raises", "a file is gone"),
        ("outer is not finite", "outer"),
    ],
)
def test_an_error_on_one_process_ends_the_step_on_all(
    two: Processes, kind: str, said: str, strategy: ImplicitHypergradient
) -> None:
    whole, other = values(two.run(step, kind, strategy))
    assert said in other["error"] and not other["error"].startswith("RankError")
    assert whole["error"].startswith("RankError: this outer step ends on rank 0 because another")
    assert "rank 1 of 2: " in whole["error"] and said in whole["error"]
    # The processes are still in step: the next outer step is right.
    assert torch.equal(whole["after"], other["after"])
    expected = step(0, 1, "", strategy)["after"]
    torch.testing.assert_close(whole["after"], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("strategy", [EXACT, SERIES], ids=["CG", "Neumann"])
def test_a_mode_that_fails_on_one_process_is_used_by_none(
    two: Processes, strategy: ImplicitHypergradient
) -> None:
    found = values(two.run(step, "no second derivative", strategy))
    for each in found:
        assert each["info"] == found[0]["info"] and each["info"][1] == "finite_difference"
        assert torch.equal(each["grads"], found[0]["grads"])
        assert torch.equal(each["after"], found[0]["after"])


def test_a_chosen_mode_that_fails_on_one_process_fails_on_all(two: Processes) -> None:
    chosen = ImplicitHypergradient(Neumann(3), hvp="func")
    for each in values(two.run(step, "no second derivative", chosen)):
        assert "hvp='func' does not work for these losses" in each["error"]


def test_a_way_of_first_order_steps_that_fails_on_one_process_is_used_by_none(
    two: Processes,
) -> None:
    found = values(two.run(step, "no forward derivative", FIRST))
    expected = step(0, 1, "", FIRST)["after"]
    for each in found:
        assert each["info"][1] == "differences"
        assert torch.equal(each["grads"], found[0]["grads"])
        # The way stays ruled out. Differences of losses have some nine digits.
        torch.testing.assert_close(each["after"], expected, rtol=1e-7, atol=1e-9)
    chosen = ImplicitHypergradient(Identity(), hvp="forward")
    for each in values(two.run(step, "no forward derivative", chosen)):
        assert "hvp='forward' does not work for these losses" in each["error"]


@pytest.mark.parametrize("strategy", [EXACT, FIRST], ids=["CG", "first order"])
def test_no_process_trusts_what_one_of_them_does_not_trust(
    two: Processes, strategy: ImplicitHypergradient
) -> None:
    whole, other = values(two.run(step, "straight-through", strategy))
    assert torch.equal(whole["grads"], other["grads"])
    if strategy is EXACT:
        assert not whole["info"][2] and not other["info"][2]
        assert other["caveat"] and whole["caveat"].startswith("on rank 1, ")


def after_a_refused_batch(rank: int, size: int) -> list[str]:
    """Outer steps after one to which a process came with no batch at all."""
    warnings.simplefilter("ignore")
    rw = wrapped(Habit("", rank, size), FIRST)
    train, dev, said = samples(rank, size), samples(rank, size, 1), []
    for i in range(41):
        try:
            rw.hypergradient(iter(train) if i == 0 and rank == 1 else train, dev)
        except Exception as error:
            said.append(f"{type(error).__name__}: {error}")
    return said


def test_processes_stay_in_step_after_a_refused_batch(two: Processes) -> None:
    whole, other = values(two.run(after_a_refused_batch))
    assert len(whole) == len(other) == 1
    assert whole[0].startswith("RankError") and "batch" in other[0]


def in_another_order(rank: int, size: int) -> str:
    first, second = (wrapped(Habit("", rank, size), SERIES) for _ in range(2))
    chosen = second if rank else first
    try:
        chosen.hypergradient(samples(rank, size), samples(rank, size, 1))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def test_outer_steps_of_different_weighters_do_not_mix(two: Processes) -> None:
    for each in values(two.run(in_another_order)):
        assert "the processes are not at the same place of an outer step (rank 0: " in each


def threads_of_wraps(rank: int, size: int) -> list[int]:
    found = []
    for _ in range(5):
        wrapped(Habit("", rank, size), FIRST)
        found.append(len(os.listdir("/proc/self/task")))
    return found


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts the threads of Linux")
def test_further_wraps_take_no_further_threads(two: Processes) -> None:
    for found in values(two.run(threads_of_wraps)):
        assert len(set(found)) == 1


def different(rank: int, size: int, what: str) -> tuple[str, str]:
    """The error and the caveat of an outer step where one process states something else."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    odd = rank == 1
    layers = [("first", nn.Linear(3, 3)), ("second", nn.Linear(3, 3)), ("last", nn.Linear(3, 1))]
    layers[1][1].load_state_dict(layers[0][1].state_dict())
    if odd and what == "order":
        layers[:2] = layers[1::-1]
    model = nn.ModuleDict(dict(layers)).double()

    class InTurn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = model

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.layers["second"](self.layers["first"](x).tanh())
            output: Tensor = self.layers["last"](hidden)
            return output

    net, habit = InTurn(), Habit("", rank, size)
    net.train(not (odd and what == "mode"))
    decay = 0.2 if odd and what == "weight decay" else 0.1
    terms = 5 if odd and what == "hypergradient" else 3
    rw = reweight.wrap(
        net,
        GroupWeighter(2).double(),
        habit.losses,
        habit.dev_loss,
        torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=decay),
        ImplicitHypergradient(Neumann(terms)),
        reduction="sum" if odd and what == "reduction" else "mean",
    )
    try:
        info = rw.hypergradient(samples(rank, size), samples(rank, size, 1)).info
    except Exception as error:
        return f"{type(error).__name__}: {error}", ""
    return "", info.caveat


@pytest.mark.parametrize("what", ["order", "weight decay", "hypergradient", "reduction"])
def test_processes_with_different_problems_are_told(two: Processes, what: str) -> None:
    for error, _ in values(two.run(different, what)):
        assert error.startswith("RankError: the processes have made different problems")
        assert what in error


def test_a_model_in_evaluation_mode_on_one_process_is_reported(two: Processes) -> None:
    for error, caveat in values(two.run(different, "mode")):
        assert not error and "in evaluation mode on others" in caveat


def test_what_one_process_could_not_compare_is_trusted_by_none(two: Processes) -> None:
    whole, other = values(two.run(step, "only once", EXACT))
    assert "the batch was used up" in other["comparison"]
    assert "on rank 1, " in whole["comparison"]
    assert not whole["info"][2] and not other["info"][2]
    assert torch.equal(whole["grads"], other["grads"])


def uneven(rank: int, size: int) -> str:
    rw = wrapped(Habit("", rank, size), SERIES, groups=False)
    try:
        if rank == 0:
            rw.loss(samples(rank, size))
        rw.hypergradient(samples(rank, size), samples(rank, size, 1))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def test_processes_that_do_different_things_are_told(two: Processes) -> None:
    for each in values(two.run(uneven)):
        assert "the processes are not at the same place of an outer step (rank 0: rows" in each
        assert "rw.loss(...)" in each


def drifting(rank: int, size: int) -> list[str]:
    said = []
    rw = wrapped(Habit("", rank, size), FIRST)
    for i in range(41):
        if i == 30 and rank == 1:
            with torch.no_grad():
                next(iter(rw.weighter.parameters())).add_(1e-12)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            info = rw.hypergradient(samples(rank, size), samples(rank, size, 1)).info
        said.append(info.caveat)
    return said


def test_weighters_that_drift_apart_are_reported(two: Processes) -> None:
    for each in values(two.run(drifting)):
        assert [i for i, caveat in enumerate(each) if caveat] == [40]
        assert "the weighter's parameters differ between the processes" in each[40]


def other_models(rank: int, size: int) -> str:
    warnings.simplefilter("ignore")
    rw = wrapped(Habit("", rank, size), SERIES)
    with torch.no_grad():
        rw.model[0].bias += 1e-9 * rank
    caveat: str = rw.hypergradient(samples(rank, size), samples(rank, size, 1)).info.caveat
    return caveat


def test_models_that_are_not_the_same_are_reported(two: Processes) -> None:
    for each in values(two.run(other_models)):
        assert "the inner parameters differ between the processes" in each


def loss_of_one(rank: int, size: int, kind: str) -> str:
    rw = wrapped(Habit(kind, rank, size), SERIES, groups=False)
    try:
        rw.loss(samples(rank, size))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def test_a_loss_that_raises_on_one_process_raises_on_all(two: Processes) -> None:
    whole, other = values(two.run(loss_of_one, "raises"))
    assert other == "KeyError: 'no such column'" and "rank 1 of 2: KeyError" in whole


def on_fresh(rank: int, size: int, count: int) -> Any:
    warnings.simplefilter("ignore")
    rw = wrapped(Habit("", rank, size), SERIES)
    own = count if rank == 0 else 20
    fresh = iter([samples(rank, size, 10 + i) for i in range(own)])
    try:
        result = rw.hypergradient(samples(rank, size), samples(rank, size, 1), batches=fresh)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return torch.cat([g.flatten() for g in result.grads.values()])


def test_fresh_batches_of_all_processes_make_one_batch(two: Processes) -> None:
    found = values(two.run(on_fresh, 20))
    assert torch.equal(found[0], found[1])
    torch.testing.assert_close(found[0], on_fresh(0, 1, 20), rtol=1e-12, atol=1e-14)
    ended, other = values(two.run(on_fresh, 2))
    assert "batches ran out" in ended and "rank 0 of 2: ValueError: batches ran out" in other


def test_without_a_group_a_process_is_alone(two: Processes) -> None:
    for rank, found in enumerate(values(two.run(alone))):
        expected = alone(rank, 2)
        assert torch.equal(found, expected)


def alone(rank: int, size: int) -> Tensor:
    torch.manual_seed(0)
    model, habit = nn.Linear(3, 1).double(), Habit("", 0, 1)
    rw = reweight.wrap(
        model, GroupWeighter(2).double(), habit.losses, habit.dev_loss, process_group=None
    )
    result = rw.hypergradient(samples(rank, size), samples(rank, size, 1))
    return torch.cat([g.flatten() for g in result.grads.values()])


def with_a_group_of_its_own(rank: int, size: int) -> str:
    if rank == 0:
        distributed.new_group([0], use_local_synchronization=True)
    return str(wrapped(Habit("", rank, size), FIRST).problem.ranks.size)


def test_processes_with_other_groups_of_their_own_meet(two: Processes) -> None:
    assert values(two.run(with_a_group_of_its_own)) == ["2", "2"]


def left_out(rank: int, size: int) -> str:
    group, habit = distributed.new_group([0]), Habit("", rank, size)
    try:
        reweight.wrap(
            nn.Linear(3, 1), GroupWeighter(2), habit.losses, habit.dev_loss, process_group=group
        )
    except ValueError as error:
        return str(error)
    return ""


def test_a_process_that_a_group_leaves_out_is_told(two: Processes) -> None:
    member, other = values(two.run(left_out))
    assert not member and "process_group does not hold this process" in other


def copied(rank: int, size: int) -> bool:
    rw = wrapped(Habit("", rank, size), SERIES)
    train, dev = samples(rank, size), samples(rank, size, 1)
    found = [each.hypergradient(train, dev).grads for each in (rw, copy.deepcopy(rw))]
    return all(torch.equal(g, found[1][name]) for name, g in found[0].items())


def test_a_copy_has_the_same_processes(two: Processes) -> None:
    assert values(two.run(copied)) == [True, True]


def test_processes_that_meet_after_wrap_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    habit, options = Habit("", 0, 1), {"process_group": None}
    model, weighter = nn.Linear(3, 1).double(), GroupWeighter(2).double()
    early = reweight.wrap(model, weighter, habit.losses, habit.dev_loss)
    alone = reweight.wrap(model, weighter, habit.losses, habit.dev_loss, **options)
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    with pytest.raises(RuntimeError, match="initialised after wrap"):
        early.hypergradient(samples(0, 1), samples(0, 1, 1))
    alone.hypergradient(samples(0, 1), samples(0, 1, 1))


def misses(rank: int, size: int) -> str:
    rw = wrapped(Habit("", rank, size), SERIES)
    if rank == 1:
        return ""
    try:
        rw.hypergradient(samples(rank, size), samples(rank, size, 1))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [FIRST, SERIES], ids=["first order", "Neumann"])
def test_a_killed_process_ends_the_others(tmp_path: Path, strategy: ImplicitHypergradient) -> None:
    group = Processes(2, tmp_path, timedelta(seconds=20))
    group.start(step, "kills", strategy)
    rank, answer = group.answer()
    group.processes[1].join(timeout=30.0)
    assert group.processes[1].exitcode == -signal.SIGKILL
    assert rank == 0 and isinstance(answer, Raised)  # the step after it does not work either
    assert "RankError: rank 0 of 2 has lost the other processes in an outer step" in answer.args[0]
    group.close()


@pytest.mark.slow
def test_a_process_that_misses_an_outer_step_is_waited_for_no_longer_than_the_timeout(
    tmp_path: Path,
) -> None:
    group = Processes(2, tmp_path, timedelta(seconds=3))
    waited, _ = values(group.run(misses))
    assert "it did not come to this outer step in time" in waited
    group.close()


@pytest.mark.parametrize("given", ["default", 3, nn.Linear(1, 1)])
def test_a_wrong_group_is_refused(given: Any) -> None:
    habit = Habit("", 0, 1)
    with pytest.raises(TypeError, match="process_group must be"):
        reweight.wrap(
            nn.Linear(3, 1), GroupWeighter(2), habit.losses, habit.dev_loss, process_group=given
        )
