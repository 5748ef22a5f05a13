"""A row-sharded table is an embedding of the rows that are read while a context is open."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn

from _support.processes import Processes
from _support.sharded import (
    ROWS,
    Net,
    Replicate,
    Shard,
    batch,
    losses,
    mesh,
    net,
    own,
    raised,
    run_on,
    second,
    sharded_by_rows,
)
from reweight._sharded import Shards, StandIns
from reweight._tensors import Ranks


def shards(model: nn.Module) -> Shards:
    return Shards(list(model.modules()), {id(p): n for n, p in model.named_parameters()})


def layouts() -> list[Any]:
    return [Replicate(), Shard(0)]


def in_context(model: nn.Module, mine: Any, body: Callable[[StandIns], Any]) -> Any:
    """What ``body`` returns inside of the context, in which ``losses`` read the rows of a batch."""
    ranks = Ranks(distributed.group.WORLD)
    with (
        ranks.together(),
        shards(model).plain(ranks, lambda: losses(model, mine).sum()) as stand_ins,
    ):
        return body(stand_ins)


def the_small_embedding_has_the_derivatives_of_the_whole_one() -> None:
    reference = net()
    for layout in layouts():
        model = sharded_by_rows(net(), layout)
        # Where ids are replicated, every process has the same batch.
        both = batch(0, 4)
        mine = both if layout.is_replicate() else own(both)
        read = torch.unique(both[0])
        assert len(read) < len(reference.table.weight)

        def body(_: StandIns, model: Net = model, mine: Any = mine, read: Tensor = read) -> None:
            assert type(model.table.weight) is nn.Parameter
            assert [n for n, _ in model.named_parameters()] == [
                n for n, _ in reference.named_parameters()
            ]
            assert torch.equal(model.table.weight, reference.table.weight[read])
            assert torch.equal(losses(model, mine), losses(reference, mine))
            of_table, *rest = second(model, mine)
            whole, *others = second(reference, mine)
            # Every entry is computed by the same operations on the same numbers.
            assert torch.equal(of_table, whole[read])
            assert all(torch.equal(a, b) for a, b in zip(rest, others, strict=True))

        in_context(model, mine, body)


def everything_is_put_back_after_an_error_too() -> None:
    for layout in layouts():
        model = sharded_by_rows(net(), layout)
        calls: list[str] = []
        model.table.register_forward_hook(lambda *_, calls=calls: calls.append("of the user"))
        mine = batch(0, 4)
        before, expected = (
            (model.table.weight, dict(vars(model.table)), list(model.table._forward_hooks)),
            losses(model, mine),
        )
        called = len(calls)

        def failing(_: StandIns) -> None:
            raise ValueError("of the losses")

        said = raised(partial(in_context, model, mine, failing), ValueError)
        assert said == "of the losses"
        assert len(calls) == called + 1  # in the pass that reads rows, once
        assert model.table.weight is before[0]
        assert vars(model.table) == before[1]
        assert list(model.table._forward_hooks) == before[2]
        assert torch.equal(losses(model, mine), expected)


def rows_of_second_moments_are_read_with_the_rows() -> None:
    model, reference = sharded_by_rows(net(), layouts()[0]), net()
    mine = batch(0, 4)
    optimizers = [torch.optim.Adam(m.parameters(), lr=0.1) for m in (model, reference)]
    for m, optimizer in zip((model, reference), optimizers, strict=True):
        losses(m, mine).sum().backward()
        optimizer.step()

    def body(stand_ins: StandIns) -> None:
        (view,) = stand_ins.optimizers(optimizers[:1])
        moments = optimizers[1].state[reference.table.weight]["exp_avg_sq"]
        found = view.state[model.table.weight]["exp_avg_sq"]
        assert torch.equal(found, moments[torch.unique(mine[0])])

    in_context(model, mine, body)


def a_layout_that_spreads_one_input_over_processes_is_refused() -> None:
    from torch.distributed.tensor.parallel import RowwiseParallel, parallelize_module

    model = net()  # sequence parallelism: each process gets a part of one embedding
    style = RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(0))
    parallelize_module(model, mesh(), {"table": style})
    said = raised(lambda: in_context(model, batch(0), print), ValueError)
    assert "table.weight" in said and "sequence parallelism" in said


def a_module_that_gives_something_else_than_look_ups_is_refused() -> None:
    class Other(nn.Embedding):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(torch.zeros_like(input))

    model = net()
    model.table = Other(ROWS, 3).double()
    sharded_by_rows(model, Replicate())
    # Not as many samples as above: torch 2.4 takes one look-up for another of the same sizes.
    assert "other values" in raised(lambda: in_context(model, batch(0, 6), print), ValueError)


def ids_of_an_earlier_pass_are_all_that_can_be_looked_up() -> None:
    model = sharded_by_rows(net(), layouts()[0])
    mine = batch(0, 4)
    other = torch.tensor(sorted(set(range(ROWS)) - set(mine[0].reshape(-1).tolist())))
    said = raised(lambda: in_context(model, mine, lambda _: model.table(other)), RuntimeError)
    assert "table.weight" in said and "negatives" in said


def an_id_out_of_range_is_an_error_of_all_processes() -> None:
    model = sharded_by_rows(net(), layouts()[1])
    ids, x, y = own(batch(0))
    if distributed.get_rank() == 1:
        ids = ids + ROWS
    said = raised(lambda: in_context(model, (ids, x, y), print))
    assert "table.weight has 29 rows" in said


CHECKS = (
    the_small_embedding_has_the_derivatives_of_the_whole_one,
    everything_is_put_back_after_an_error_too,
    rows_of_second_moments_are_read_with_the_rows,
    a_layout_that_spreads_one_input_over_processes_is_refused,
    a_module_that_gives_something_else_than_look_ups_is_refused,
    ids_of_an_earlier_pass_are_all_that_can_be_looked_up,
    an_id_out_of_range_is_an_error_of_all_processes,
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_in_two_processes(check: Callable[[], None], two: Processes) -> None:
    run_on(two, check)
