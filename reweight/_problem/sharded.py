"""A problem whose model lies in shards, as the same problem on a plain model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from reweight._problem.bilevel import BilevelProblem
from reweight._problem.isolation import is_compiled, isolated
from reweight._problem.objects import inside
from reweight._tensors import shared, tensors_in


@contextmanager
def on_a_plain_model(
    problem: BilevelProblem,
    parts: list[nn.Module],
    batch: Any,
    dev_batch: Any,
    batches: Iterable[Any] | None,
) -> Iterator[BilevelProblem]:
    """The problem itself, or where its model lies in shards, one that outer steps can work on.

    All processes have to open the context. While it is open, the modules hold plain parameters.

    Args:
        problem: the problem.
        parts: every module that an evaluation may use.
        batch: the train batch.
        dev_batch: the dev batch.
        batches: further batches of the step.

    Raises:
        TypeError: row-sharded tables where this process is alone.
        ValueError: row-sharded tables and further batches.
    """
    shards = problem.shards(parts)
    if shards is None:
        yield problem
        return
    group = shared()
    if shards.has_rows and group is None:
        raise TypeError(
            "the model has row-sharded embedding tables and this process is alone "
            "(process_group=None, or a group of one process): their rows lie in other processes. "
            'Leave wrap(..., process_group="auto")'
        )
    if shards.has_rows and batches is not None:
        raise ValueError(
            "batches= with row-sharded embedding tables: the processes exchange the rows that "
            "batch and dev_batch read, before further batches are known. Leave batches out, or "
            "keep the tables whole"
        )

    def passes() -> None:
        _read_rows(problem.standing_in(shards.stand_ins), parts, batch, dev_batch)

    with shards.plain(group, passes) as stand_ins:
        yield problem.standing_in(stand_ins)


def _read_rows(problem: BilevelProblem, parts: list[nn.Module], batch: Any, dev_batch: Any) -> None:
    """Evaluate the losses as the outer step will, without side effects."""
    look = problem.guard.is_new(("rows", tuple(part.training for part in parts)))
    problem.guard.objects = problem.mutable(parts)
    theta, phi = problem.theta(), problem.phi()
    with isolated(
        parts,
        {p.device for p in (*theta.values(), *phi.values())},
        theta,
        problem.guard,
        tensors_in((batch, dev_batch)),
        watch=look and not is_compiled(parts),
        objects=[*problem.guard.objects, *inside((batch, dev_batch))],
    ) as isolation:
        with isolation.watched():
            problem.outer_loss(dev_batch)
        isolation.restore()
        with isolation.watched():
            problem.evaluated(batch)
