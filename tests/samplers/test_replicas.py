"""Replicas share out the pairs of one process."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from _support.samplers import any_sampler, epoch_of
from reweight.samplers import ReorderReuseSampler


@given(any_sampler)
def test_ranks_have_equal_counts_and_share_no_sample(choice: Any) -> None:
    cls, settings = choice
    num_replicas = settings["num_replicas"]
    shares = [list(cls(**settings, rank=rank)) for rank in range(num_replicas)]
    for pair in zip(*shares, strict=True):
        assert len({len(train) for train, _ in pair}) == 1
        assert len({len(dev) for _, dev in pair}) == 1
        trains = torch.cat([train for train, _ in pair]).tolist()
        assert len(set(trains)) == len(trains)
    trained = [i for share in shares for train, _ in share for i in train.tolist()]
    assert len(set(trained)) == len(trained)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(4, 12))
def test_replicas_deal_out_the_pairs_of_one_process(
    num_replicas: int, batch_size: int, batches: int
) -> None:
    n = num_replicas * (batch_size * batches - batch_size // 2)
    one = epoch_of(ReorderReuseSampler(n, batch_size * num_replicas, seed=4))
    for rank in range(num_replicas):
        dealt = ReorderReuseSampler(n, batch_size, seed=4, num_replicas=num_replicas, rank=rank)
        assert epoch_of(dealt) == [
            (train[rank::num_replicas], dev[rank::num_replicas]) for train, dev in one
        ]


def test_the_samples_left_out_of_a_ragged_tail_change_by_epoch() -> None:
    samplers = [ReorderReuseSampler(14, 2, num_replicas=3, rank=rank) for rank in range(3)]
    left_out = set()
    for _ in range(12):
        trained = {i for sampler in samplers for train, _ in epoch_of(sampler) for i in train}
        assert len(trained) == 12
        left_out |= set(range(14)) - trained
    assert len(left_out) > 7
