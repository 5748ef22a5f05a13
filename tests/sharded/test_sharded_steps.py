"""Outer steps on sharded models give the numbers of one process with a plain model.

Two processes, each with its own samples, are compared with one that has all samples in one batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import cross_entropy

import reweight
from _support.processes import Processes
from _support.sharded import (
    Net,
    Replicate,
    Shard,
    batch,
    fully_sharded,
    losses,
    net,
    outer_loss,
    own,
    raised,
    run_on,
    sharded_by_rows,
    unchanged,
    weighter,
    wrapped,
)
from reweight import (
    ConjugateGradient,
    Identity,
    ImplicitHypergradient,
    Neumann,
    SecondMoments,
)

if not hasattr(distributed.fsdp, "fully_shard"):
    pytest.skip("FSDP2 needs CUDA before torch 2.6", allow_module_level=True)

SOLVERS = {
    "first-order": ImplicitHypergradient(Identity()),
    "SAMA": ImplicitHypergradient(Identity(), preconditioner=SecondMoments()),
    "Neumann": ImplicitHypergradient(Neumann(num_terms=3)),
    "CG": ImplicitHypergradient(ConjugateGradient(max_steps=30, rtol=1e-10), damping=5.0),
}
# Sums over samples are rounded in another order; the condition numbers are below 100.
TOLERANCE = 1e-12


def ranks_first(x: Tensor) -> list[Tensor]:
    """A tensor of every process."""
    found = [torch.empty_like(x) for _ in range(distributed.get_world_size())]
    distributed.all_gather(found, x.contiguous())
    return found


def assert_same_steps(
    model: Net, strategy: ImplicitHypergradient, part: Callable[[Any], Any], scale: float = 1.0
) -> None:
    """Compare three outer steps, after training steps of the same kind.

    Args:
        model: the sharded model.
        strategy: how to solve.
        part: this process's part of a batch.
        scale: of the influence of a sample.
    """
    sharded, plain = wrapped(model, strategy), wrapped(net(), strategy, process_group=None)
    for step in range(3):
        train, dev = batch(step), batch(10 + step, 6)
        for rw in (plain, sharded):
            optimizer: Any = rw.problem.optimizers[0]
            optimizer.zero_grad()
            # All processes train on all samples, so that each has the gradient of all.
            outer_loss(rw.model, train).backward()
            optimizer.step()
        expected = plain.outer_backward(train, dev)
        found = sharded.outer_backward(part(train), part(dev))
        for name, grad in expected.grads.items():
            assert (found.grads[name] - grad).norm() <= TOLERANCE * grad.norm(), name
            assert all(torch.equal(x, found.grads[name]) for x in ranks_first(found.grads[name]))
        (influence,) = part((expected.influence,))
        error = (found.influence - scale * influence).norm()
        assert error <= TOLERANCE * expected.influence.norm()
        assert found.info.status == expected.info.status
        assert found.info.trustworthy == expected.info.trustworthy
        assert found.info.hvp_mode == expected.info.hvp_mode


def ragged(batch: Any) -> Any:
    return own(batch, ragged=True)


def fsdp2() -> None:
    for strategy in SOLVERS.values():
        assert_same_steps(fully_sharded(net()), strategy, ragged)


def fsdp2_without_resharding() -> None:
    for strategy in SOLVERS.values():
        model = fully_sharded(net(), reshard_after_forward=False)
        assert_same_steps(model, strategy, own)


def rows_and_ids_of_one_batch() -> None:
    for strategy in SOLVERS.values():
        # Every sample counts in each process, so it has half the influence in each.
        assert_same_steps(sharded_by_rows(net(), Replicate()), strategy, tuple, 0.5)


def rows_and_ids_of_each_process() -> None:
    for strategy in SOLVERS.values():
        # The training steps above are those of all samples in each process, whose table then gets
        # the sum over the processes; so the model is trained as FSDP2 trains it, by the mean.
        model = sharded_by_rows(net(), Shard(0))
        model.table.weight.register_post_accumulate_grad_hook(halve)
        assert_same_steps(model, strategy, own)


def halve(p: Tensor) -> None:
    assert p.grad is not None
    p.grad.div_(distributed.get_world_size())


MATRIX = (
    fsdp2,
    fsdp2_without_resharding,
    rows_and_ids_of_one_batch,
    rows_and_ids_of_each_process,
)


def weights_and_losses_are_those_of_the_plain_model() -> None:
    rw = wrapped(net(), SOLVERS["Neumann"], process_group=None)
    mine = own(batch(0))
    expected = rw.weights(mine)
    # The weighter of the training compares the losses of all processes.
    (of_all,) = own((rw.weights(batch(0)),))
    loss = (of_all * losses(rw.model, mine)).mean()
    for model in (fully_sharded(net()), sharded_by_rows(net(), Shard(0))):
        rw = wrapped(model, SOLVERS["Neumann"])
        with unchanged(model):
            for _ in range(2):
                assert torch.equal(rw.weights(mine), expected)
                rw.hypergradient(mine, mine)
        assert abs(rw.loss(mine) - loss) <= TOLERANCE * loss


def training_is_bit_equal_with_and_without_outer_steps() -> None:
    trained = []
    for looks in (False, True):
        model = fully_sharded(net())
        rw = wrapped(model, SOLVERS["SAMA"])
        optimizer: Any = rw.problem.optimizers[0]
        for step in range(4):
            mine = own(batch(step))
            loss = rw.loss(mine)
            if looks and step:
                rw.hypergradient(mine, mine)
                rw.weights(mine)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        trained.append([p.full_tensor() for p in model.parameters()])  # type: ignore[attr-defined]
    assert all(map(torch.equal, *trained))


def an_error_of_one_process_ends_the_step_of_all() -> None:
    def failing(model: nn.Module, batch: Any) -> Tensor:
        found = losses(model, batch)
        if distributed.get_rank() == 1:
            raise ValueError("of one process")
        return found

    for model in (fully_sharded(net()), sharded_by_rows(net(), Shard(0))):
        rw = reweight.wrap(model, weighter(), failing, outer_loss)
        mine = own(batch(0))
        with unchanged(model):
            said = raised(lambda rw=rw, mine=mine: rw.hypergradient(mine, mine))
        assert "of one process" in said


def the_table_is_not_gathered_and_not_exchanged_as_a_whole() -> None:
    sent = []
    for rows in (40, 4000):
        model = net()
        model.table = nn.Embedding(rows, 3).double()
        model = sharded_by_rows(model, Shard(0))
        # As many products with the Hessian for any table.
        strategy = ImplicitHypergradient(Neumann(num_terms=3, step_size=0.01))
        rw = reweight.wrap(model, weighter(), losses, outer_loss, hypergradient=strategy)
        rw.hypergradient(own(batch(0)), own(batch(1)))
        assert rw.problem.ranks is not None
        traffic = rw.problem.ranks.traffic
        sent.append((traffic.summed, traffic.gathered, traffic.headers))
    assert sent[0] == sent[1]


def a_table_that_is_also_used_as_a_whole_is_refused() -> None:
    def penalised(model: nn.Module, batch: Any) -> reweight.Losses:
        return reweight.Losses(losses(model, batch), model.table.weight.square().sum())

    def outer(model: nn.Module, batch: Any) -> Tensor:
        return outer_loss(model, batch) + model.table.weight.abs().mean()

    def relative(model: nn.Module, batch: Any) -> Tensor:
        return losses(model, batch) * (1.0 + model.table.weight.square().mean())

    def softmax(model: nn.Module, batch: Any) -> Tensor:
        scores = losses(model, batch).unsqueeze(1) * model.table.weight[:, 0]
        return cross_entropy(scores, torch.full((len(scores),), 28), reduction="none")

    for strategy in (SOLVERS["CG"], SOLVERS["first-order"]):
        for inner, dev in (
            (penalised, outer_loss),
            (losses, outer),
            (relative, outer_loss),
            (softmax, outer_loss),
        ):
            model = sharded_by_rows(net(), Shard(0))
            rw = reweight.wrap(model, weighter(), inner, dev, hypergradient=strategy)
            mine = own(batch(0))
            with unchanged(model):
                said = raised(lambda rw=rw, mine=mine: rw.hypergradient(mine, mine))
            assert "table.weight, which is sharded by rows, in another way than" in said


def the_check_against_finite_differences_agrees() -> None:
    for model in (fully_sharded(net()), sharded_by_rows(net(), Shard(0))):
        rw = wrapped(model, SOLVERS["CG"])
        mine = own(batch(0))
        with unchanged(model):
            assert reweight.check_hypergradient(rw, mine, own(batch(1))).ok


def every_parameter_is_inner_after_a_pass_without_a_backward_pass() -> None:
    model = fully_sharded(net())
    rw = wrapped(model, SOLVERS["CG"])
    with torch.no_grad():
        rw.loss(own(batch(0)))
    count = sum(p.numel() for p in net().parameters())
    assert f"{count} of {count} parameters are inner" in repr(rw)
    assert list(rw.problem.theta()) == [n for n, _ in net().named_parameters()]


CHECKS = (
    a_table_that_is_also_used_as_a_whole_is_refused,
    the_check_against_finite_differences_agrees,
    every_parameter_is_inner_after_a_pass_without_a_backward_pass,
    weights_and_losses_are_those_of_the_plain_model,
    training_is_bit_equal_with_and_without_outer_steps,
    an_error_of_one_process_ends_the_step_of_all,
    the_table_is_not_gathered_and_not_exchanged_as_a_whole,
)


@pytest.mark.parametrize("check", MATRIX, ids=lambda check: check.__name__)
def test_two_processes_and_one_with_all_samples_agree(
    check: Callable[[], None], two: Processes
) -> None:
    run_on(two, check)


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_in_two_processes(check: Callable[[], None], two: Processes) -> None:
    run_on(two, check)
