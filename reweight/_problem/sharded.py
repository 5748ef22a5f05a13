"""A problem whose model lies in shards, as the same problem on a plain model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from reweight._problem.bilevel import BilevelProblem
from reweight._tables import Graph
from reweight._tensors import shared, sharing, some, tensors_in

Pass = Callable[[BilevelProblem], object]


@contextmanager
def on_a_plain_model(
    problem: BilevelProblem, parts: list[nn.Module], passes: Sequence[Pass], batches: Sequence[Any]
) -> Iterator[BilevelProblem]:
    """The problem itself, or where its model lies in shards, the same one on a plain model.

    While the context is open, the modules hold plain parameters. All processes have to open it.

    Args:
        problem: the problem.
        parts: every module that an evaluation may use.
        passes: what is going to be evaluated; it tells the rows of tables that are needed.
        batches: the batches of these passes.

    Raises:
        TypeError: row-sharded tables where this process is alone.
    """
    shards = problem.shards(parts)
    if shards is None:
        yield problem
        return
    group = shared()
    if shards.has_rows and group is None:
        raise TypeError(
            "the model has row-sharded embedding tables and this process is alone "
            "(process_group=None, or a group of one process), but their rows lie in other "
            'processes. Leave wrap(..., process_group="auto")'
        )

    def read() -> None:
        _read_rows(problem.standing_in(shards.stand_ins), parts, passes, batches)

    with shards.plain(group, read) as stand_ins:
        yield problem.standing_in(stand_ins)


@contextmanager
def alone_on_a_plain_model(
    problem: BilevelProblem, batch: Any, dev_batch: Any
) -> Iterator[BilevelProblem]:
    """As :func:`on_a_plain_model`, for what this process does with its own samples.

    All processes have to open the context, where the model lies in shards.
    """
    parts = problem.parts()
    if problem.shards(parts) is None:
        yield problem
        return
    with (
        problem.together(),
        on_a_plain_model(problem, parts, both(batch, dev_batch), (batch, dev_batch)) as plain,
        sharing(None),
    ):
        yield plain


def both(batch: Any, dev_batch: Any) -> tuple[Pass, Pass]:
    """The passes of an outer step."""
    return (lambda now: now.outer_loss(dev_batch), lambda now: now.evaluated(batch))


def check_fresh(problem: BilevelProblem, parts: list[nn.Module], batches: object) -> None:
    """Raise for batches of which it is not known beforehand which rows they read."""
    shards = None if batches is None else problem.shards(parts)
    if shards is not None and shards.has_rows:
        raise ValueError(
            "batches= and row-sharded embedding tables: the processes exchange the rows that batch "
            "and dev_batch read, before further batches are known. Leave batches out, or keep the "
            "tables whole"
        )


def _refuse_whole_tables(problem: BilevelProblem, found: object) -> None:
    """Raise where a pass used more of a row-sharded table than the rows that it looked up.

    Look-ups of this pass have no graph that leads to the table. Only their rows are there later.
    """
    tables = {name: p for name, p in problem.theta().items() if id(p) in problem.by_rows}
    graphs = (Graph(x) for x in tensors_in(found) if x.requires_grad)
    if whole := {name: tables[name] for graph in graphs for name in graph.reached(tables)}:
        raise ValueError(
            f"the losses use {some(whole)}, which is sharded by rows, in another way than by "
            "look-ups of the module, and an outer step has only the rows that are looked up. For a "
            "penalty use the optimizer's weight decay or a penalty on the rows of the batch, for a "
            "softmax over all items sampled ones; or keep the table whole in each process"
        )


def _read_rows(
    problem: BilevelProblem, parts: list[nn.Module], passes: Sequence[Pass], batches: Sequence[Any]
) -> None:
    """Make the passes, without side effects."""
    look = problem.guard.is_new(("rows", tuple(part.training for part in parts)))
    problem.guard.objects = problem.mutable(parts)
    with problem.isolated(parts, problem.theta(), batches, look=look) as isolation:
        for make in passes:
            with isolation.watched():
                found = make(problem)
            _refuse_whole_tables(problem, found)
            isolation.restore()
