"""Stop and resume, bit for bit."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from _support.samplers import Pairs, any_sampler, epoch_of
from reweight.samplers import ReorderReuseSampler


@given(any_sampler, st.integers(0, 20), st.booleans())
def test_a_state_resumes_bit_for_bit_anywhere(choice: Any, consumed: int, fresh: bool) -> None:
    cls, settings = choice
    sampler, reference = cls(**settings), cls(**settings)
    stream: Pairs = []
    while len(stream) < consumed + 3 * len(sampler):
        stream += epoch_of(reference)

    taken = 0
    while taken < consumed:
        for _ in sampler:
            taken += 1
            if taken == consumed:
                break
    state = json.loads(json.dumps(sampler.state_dict()))

    resumed = cls(**settings)
    if not fresh:
        next(iter(resumed))  # a sampler that was used before goes back as well
    resumed.load_state_dict(state)
    rest = epoch_of(resumed) + epoch_of(resumed)
    assert rest == stream[consumed : consumed + len(rest)]
    assert len(rest) > len(sampler)


def test_a_state_is_the_same_on_all_ranks_and_serves_any() -> None:
    samplers = [ReorderReuseSampler(30, 2, num_replicas=3, rank=rank) for rank in range(3)]
    for sampler in samplers:
        next(iter(sampler))
    state = samplers[0].state_dict()
    assert all(sampler.state_dict() == state for sampler in samplers)
    resumed = ReorderReuseSampler(30, 2, num_replicas=3, rank=2)
    resumed.load_state_dict(state)
    expected = epoch_of(ReorderReuseSampler(30, 2, num_replicas=3, rank=2))[1:]
    assert epoch_of(resumed) == expected


def test_an_abandoned_epoch_is_followed_by_the_next() -> None:
    reference = ReorderReuseSampler(20, 4)
    epochs = [epoch_of(reference) for _ in range(3)]
    sampler = ReorderReuseSampler(20, 4)
    next(iter(sampler))
    iter(sampler)
    assert epoch_of(sampler) == epochs[2]


def test_an_abandoned_iterator_does_not_move_the_state() -> None:
    sampler = ReorderReuseSampler(20, 4)
    abandoned, current = iter(sampler), iter(sampler)
    next(current)
    state = sampler.state_dict()
    list(abandoned)
    assert sampler.state_dict() == state
    assert (state["epoch"], state["position"]) == (1, 1)


def test_after_the_last_pair_the_state_is_at_the_next_epoch() -> None:
    sampler = ReorderReuseSampler(20, 4)
    for _ in sampler:
        state = sampler.state_dict()
    assert (state["epoch"], state["position"]) == (1, 0)
    assert sampler.state_dict() == state
