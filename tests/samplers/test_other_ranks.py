"""An epoch that goes on with another number of ranks uses what is left of it, each sample once."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, NamedTuple

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from _support.samplers import Pairs, all_ranks, epoch_of, globally
from reweight.samplers import PairLoader, ReorderReuseSampler, SplitSampler

RANKS = st.sampled_from([1, 2, 3, 4, 7])


class Stage(NamedTuple):
    """The sizes that a training has for a number of steps, before it goes on with others."""

    batch_size: int
    dev_batch_size: int | None
    num_replicas: int
    steps: int

    def of(self, cls: Any, samples: dict[str, Any]) -> list[Any]:
        sizes = self._asdict()
        del sizes["steps"]
        return all_ranks(cls, {**samples, **sizes})


@st.composite
def stages(draw: st.DrawFn, fixed: bool | None = None) -> list[Stage]:
    """Numbers of ranks, each different from the one before."""
    with_dev = draw(st.booleans()) if fixed is None else fixed
    found: list[Stage] = []
    for _ in range(draw(st.integers(2, 4))):
        dev_batch_size = draw(st.integers(1, 6)) if with_dev else None
        stage = Stage(draw(st.integers(1, 6)), dev_batch_size, draw(RANKS), draw(st.integers(0, 5)))
        if not found or stage.num_replicas != found[-1].num_replicas:
            found.append(stage)
    return found


def step(ranks: list[Any], steps: int) -> Pairs:
    """The first global pairs of an epoch, at most ``steps`` and not to its end."""
    iterators = [iter(rank) for rank in ranks]
    pairs = []
    for _ in range(steps):
        shares = [next(iterator) for iterator in iterators]
        pairs.append(tuple(sum((share[side].tolist() for share in shares), []) for side in (0, 1)))
        if ranks[0].state_dict()["epoch"]:
            break
    return pairs  # type: ignore[return-value]


def moved(ranks: list[Any], others: list[Any]) -> None:
    """Load the state of some ranks into others; it is the same on all."""
    states = [json.loads(json.dumps(rank.state_dict())) for rank in ranks]
    assert all(state == states[0] for state in states)
    for other in others:
        other.load_state_dict(states[0])


def trained(cls: Any, samples: dict[str, Any], plan: list[Stage]) -> tuple[list[Pairs], list[Any]]:
    """The global pairs of the first epoch by stage, and the ranks of the last stage after it."""
    ranks = plan[0].of(cls, samples)
    seen = []
    for stage, following in zip(plan, plan[1:]):
        seen.append(step(ranks, stage.steps))
        others = following.of(cls, samples)
        moved(ranks, others)
        ranks = others
        if ranks[0].state_dict()["epoch"]:
            return seen, ranks
    return [*seen, globally(ranks)], ranks


def joined(pairs: Pairs, side: int) -> list[int]:
    return sum((pair[side] for pair in pairs), [])
