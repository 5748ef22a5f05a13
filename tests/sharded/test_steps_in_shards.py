"""First-order steps by differences move FSDP2's parameters where they lie."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn

import reweight
from _support.processes import Processes
from _support.sharded import (
    batch,
    fully_sharded,
    losses,
    net,
    outer_loss,
    own,
    raised,
    run_on,
    unchanged,
    weighter,
    wrapped,
)
from reweight import Identity, ImplicitHypergradient, SecondMoments

if not hasattr(distributed.fsdp, "fully_shard"):
    pytest.skip("FSDP2 needs CUDA before torch 2.6", allow_module_level=True)

IN_SHARDS = ImplicitHypergradient(Identity(), hvp="differences")
SAMA = ImplicitHypergradient(Identity(), hvp="differences", preconditioner=SecondMoments())
# Central differences in float64: the rounding of the losses over the step, eps^(2/3) = 4e-11, and
# the same again in the gradients of the weighter, which cancel to a tenth.
TOLERANCE = 1e-8


def the_numbers_are_those_of_a_plain_model() -> None:
    for strategy in (IN_SHARDS, SAMA):
        for options in ({}, {"reshard_after_forward": False}):
            sharded = wrapped(fully_sharded(net(), **options), strategy)
            exact = ImplicitHypergradient(Identity(), preconditioner=strategy.preconditioner)
            plain = wrapped(net(), exact)
            for step in range(3):
                for rw in (sharded, plain):
                    optimizer: Any = rw.problem.optimizers[0]
                    optimizer.zero_grad()
                    outer_loss(rw.model, batch(step)).backward()
                    optimizer.step()
                given = own(batch(step), ragged=True), own(batch(10 + step, 6))
                with unchanged_values(sharded.model):
                    found = sharded.outer_backward(*given)
                expected = plain.outer_backward(*given)
                error = (found.influence - expected.influence).norm()
                assert error <= TOLERANCE * expected.influence.norm()
                for name, grad in expected.grads.items():
                    assert (found.grads[name] - grad).norm() <= TOLERANCE * grad.norm()
                assert found.info.hvp_mode == "differences"
                assert not found.info.caveat and not found.info.unexamined


def unchanged_values(model: nn.Module) -> Any:
    for p in model.parameters():
        p.grad = None
    return unchanged(model)


def no_process_holds_the_whole_model() -> None:
    seen: list[bool] = []

    def looking(model: Any, batch: Any) -> Tensor:
        found = losses(model, batch)
        seen.append(hasattr(model.body[0].weight, "device_mesh"))
        return found

    rw = reweight.wrap(
        fully_sharded(net()),
        weighter(),
        looking,
        hypergradient=IN_SHARDS,
        outer_loss=lambda model, batch: looking(model, batch).mean(),
    )
    rw.hypergradient(own(batch(0)), own(batch(1)))
    assert seen and all(seen)


def training_is_bit_equal_with_and_without_outer_steps() -> None:
    trained = []
    for looks in (False, True):
        model: Any = fully_sharded(net())
        rw = wrapped(model, SAMA)
        optimizer: Any = rw.problem.optimizers[0]
        for step in range(5):
            mine = own(batch(step))
            # Two batches of each step are accumulated, the first one without a reduction.
            for last in (False, True):
                model.set_requires_gradient_sync(last)
                loss = rw.loss(mine)
                if looks and step:  # between a pass and its backward pass, too
                    assert not rw.hypergradient(mine, mine).info.caveat
                loss.backward()
                if looks and step:
                    rw.hypergradient(mine, mine)
            optimizer.step()
            optimizer.zero_grad()
        trained.append([p.full_tensor() for p in model.parameters()])
    assert all(map(torch.equal, *trained))


def gradients_of_another_scale_are_noticed() -> None:
    model: Any = fully_sharded(net())
    setting = getattr(model, "set_gradient_divide_factor", None)
    setting = setting or model.set_reduce_scatter_divide_factor
    for part in (model, model.body):
        getattr(part, setting.__name__)(1.0)  # sums instead of means
    caveat = wrapped(model, IN_SHARDS).hypergradient(own(batch(0)), own(batch(1))).info.caveat
    assert "differ" in caveat and "gradients" in caveat


def an_error_of_one_process_ends_the_step_of_all() -> None:
    for last in range(1, 8):
        calls: list[int] = []

        def failing(model: nn.Module, batch: Any, calls: Any = calls, last: int = last) -> Tensor:
            found = losses(model, batch)
            calls.append(len(calls))
            if len(calls) == last and distributed.get_rank() == 1:
                raise ValueError("of one process")
            return found

        def outer(model: nn.Module, batch: Any, failing: Any = failing) -> Tensor:
            return failing(model, batch).mean()

        model = fully_sharded(net())
        rw = reweight.wrap(model, weighter(), failing, outer, hypergradient=IN_SHARDS)
        with unchanged(model):
            said = raised(partial(rw.hypergradient, own(batch(0)), own(batch(1))))
        assert "of one process" in said
        assert (said == "of one process") == (distributed.get_rank() == 1)


CHECKS = (
    the_numbers_are_those_of_a_plain_model,
    no_process_holds_the_whole_model,
    training_is_bit_equal_with_and_without_outer_steps,
    gradients_of_another_scale_are_noticed,
    an_error_of_one_process_ends_the_step_of_all,
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_in_two_processes(check: Callable[[], None], two: Processes) -> None:
    run_on(two, check)
