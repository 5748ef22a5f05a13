"""A model of ``fully_shard`` is a plain one while a context is open, and is not changed by it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn

from _support.processes import Processes
from _support.sharded import (
    MixedPrecisionPolicy,
    Net,
    batch,
    fully_shard,
    fully_sharded,
    losses,
    net,
    outer_loss,
    own,
    raised,
    register_fsdp_forward_method,
    run_on,
    second,
)
from reweight._sharded import Shards

if not hasattr(distributed.fsdp, "fully_shard"):
    pytest.skip("FSDP2 needs CUDA before torch 2.6", allow_module_level=True)


def shards(model: nn.Module) -> Shards:
    return Shards(list(model.modules()), {id(p): n for n, p in model.named_parameters()})


def nothing() -> None: ...


def ways() -> list[dict[str, Any]]:
    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16, output_dtype=torch.bfloat16)
    return [{"reshard_after_forward": x} for x in (True, False)] + [{"mp_policy": half}]


def equal(a: Any, b: Any) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def the_gathered_model_has_the_derivatives_of_the_plain_one() -> None:
    reference = net()
    for options in ways():
        model = fully_sharded(net(), **options)
        names = [n for n, _ in model.named_parameters()]
        # Twice: the second time after a pass that leaves the outermost module gathered.
        for _ in range(2):
            with shards(model).plain(None, nothing):
                assert [n for n, _ in model.named_parameters()] == names
                assert all(type(p) is nn.Parameter for p in model.parameters())
                assert equal(model.parameters(), reference.parameters())
                assert torch.equal(losses(model, batch(0)), losses(reference, batch(0)))
                assert equal(second(model, batch(0)), second(reference, batch(0)))
            with torch.no_grad():
                model(*batch(0)[:2])


def training_goes_on_as_if_nothing_had_happened() -> None:
    for options in ways():
        trained = []
        for looks in (False, True):
            model = fully_sharded(net(), **options)
            found = shards(model)
            optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
            for step in range(4):
                mine = own(batch(step))
                if looks:
                    with found.plain(None, nothing) as stand_ins:
                        second(model, mine)
                        stand_ins.optimizers([optimizer])
                loss = outer_loss(model, mine)
                if looks and step == 2:  # also between a pass and its backward pass
                    with found.plain(None, nothing):
                        second(model, mine)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            trained.append([p.full_tensor() for p in model.parameters()])  # type: ignore[attr-defined]
        assert equal(*trained)


def everything_is_put_back_after_an_error_too() -> None:
    model = fully_sharded(net())
    calls: list[str] = []
    model.body.register_forward_hook(lambda *_: calls.append("hook of the user"))

    def state() -> list[Any]:
        return [
            [dict(part._parameters), list(vars(part))]
            + [list(x.items()) for x in (part._forward_hooks, part._forward_pre_hooks)]
            for part in model.modules()
        ]

    found, before = shards(model), state()

    def failing() -> None:
        with found.plain(None, nothing):
            model(*batch(0)[:2])
            raise ValueError("of the losses")

    assert raised(failing, ValueError) == "of the losses"
    assert calls == ["hook of the user"]
    # A parameter in a dict is compared by identity first, so its values are not looked at.
    assert before == state()


def a_tied_parameter_stays_tied_and_a_frozen_one_frozen() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 3)
            self.last.weight = self.first.weight
            self.first.bias.requires_grad_(False)

    model = Tied()
    fully_shard(model)
    with shards(model).plain(None, nothing):
        assert model.first.weight is model.last.weight
        assert model.first.weight.shape == (3, 3)
        assert [p.requires_grad for p in (model.first.bias, model.last.bias)] == [False, True]


def modules_that_share_a_group_are_served() -> None:
    model, reference = net(), net()
    fully_shard([model.body, model.head])
    fully_shard(model)
    model(*batch(0)[:2])
    with shards(model).plain(None, nothing):
        assert equal(second(model, batch(0)), second(reference, batch(0)))


def a_method_that_fsdp_wraps_is_the_users_own_method() -> None:
    class Encoder(Net):
        def encode(self, ids: Tensor) -> Tensor:
            out: Tensor = self.body(self.table(ids).sum(1))
            return out

    torch.manual_seed(0)
    reference = Encoder().double()
    model = fully_sharded(copy.deepcopy(reference))
    register_fsdp_forward_method(model, "encode")
    wrapped = vars(model)["encode"]
    with shards(model).plain(None, nothing):
        plain = {id(p) for p in model.parameters()}
        assert torch.equal(model.encode(batch(0)[0]), reference.encode(batch(0)[0]))
        assert plain == {id(p) for p in model.parameters()}
    assert vars(model)["encode"] is wrapped


def an_optimizer_is_seen_with_plain_parameters_and_left_alone() -> None:
    model, reference = fully_sharded(net()), net()
    groups = [
        [
            {"params": [*m.body.parameters()], "weight_decay": 0.5},
            {"params": [*m.head.parameters(), *m.table.parameters()], "lr": 0.2},
        ]
        for m in (model, reference)
    ]
    optimizers = [torch.optim.Adam(g, lr=0.1, amsgrad=True) for g in groups]
    for m, optimizer in zip((model, reference), optimizers, strict=True):
        outer_loss(m, batch(0)).backward()  # all processes have the same samples
        optimizer.step()
    held = len(optimizers[0].state)
    with shards(model).plain(None, nothing) as stand_ins:
        (view,) = stand_ins.optimizers(optimizers[:1])
        assert type(view).__name__ == "Adam"
        for seen, group in zip(view.param_groups, optimizers[1].param_groups, strict=True):
            assert (seen["lr"], seen["weight_decay"]) == (group["lr"], group["weight_decay"])
            for p, q in zip(seen["params"], group["params"], strict=True):
                for key, entry in optimizers[1].state[q].items():
                    # The mean over processes of equal gradients is exact.
                    assert torch.equal(view.state[p][key], entry), key
        assert not view.state.get(nn.Parameter(torch.zeros(1)))
    assert len(optimizers[0].state) == held


def stand_ins_stay_the_same_objects_and_hold_no_memory_in_between() -> None:
    model = fully_sharded(net())
    found = shards(model)
    with found.plain(None, nothing):
        first = list(model.parameters())
        outer_loss(model, batch(0)).backward()
    assert all(p.numel() == 0 and p.grad is None for p in first)
    with found.plain(None, nothing):
        assert all(p is q for p, q in zip(first, model.parameters(), strict=True))


CHECKS = (
    the_gathered_model_has_the_derivatives_of_the_plain_one,
    training_goes_on_as_if_nothing_had_happened,
    everything_is_put_back_after_an_error_too,
    a_tied_parameter_stays_tied_and_a_frozen_one_frozen,
    modules_that_share_a_group_are_served,
    a_method_that_fsdp_wraps_is_the_users_own_method,
    an_optimizer_is_seen_with_plain_parameters_and_left_alone,
    stand_ins_stay_the_same_objects_and_hold_no_memory_in_between,
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_in_two_processes(check: Callable[[], None], two: Processes) -> None:
    run_on(two, check)
