"""Ranks share out the pairs of one process."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Dataset

from _support.samplers import all_ranks, any_sampler, epoch_of, globally, reuse_settings
from reweight.samplers import PairLoader, ReorderReuseSampler, SplitSampler


@given(any_sampler)
def test_ranks_make_equal_numbers_of_steps_with_a_sample_in_each_batch(choice: Any) -> None:
    cls, settings = choice
    ranks = all_ranks(cls, settings)
    for _ in range(2):
        # strict: a rank with more steps than another would wait for it forever.
        for pair in zip(*ranks, strict=True):
            for side, largest in ((0, settings["batch_size"]), (1, settings["dev_batch_size"])):
                sizes = [len(batches[side]) for batches in pair]
                assert 1 <= min(sizes) <= max(sizes) <= min(sizes) + 1
                assert max(sizes) <= (largest or settings["batch_size"])


@given(reuse_settings())
def test_all_ranks_together_use_every_sample_once_in_both_problems(
    settings: dict[str, Any],
) -> None:
    n, ranks = settings["n"], all_ranks(ReorderReuseSampler, settings)
    alone = settings["batch_size"] == 1  # a share of one sample can take no sample of another
    used = n - n % settings["num_replicas"] if alone else n
    for _ in range(3):
        pairs = globally(ranks)
        train, dev = (sum((pair[side] for pair in pairs), []) for side in (0, 1))
        assert len(set(train)) == len(train) == used
        if settings["dev_batch_size"] is None and not alone:
            assert sorted(dev) == list(range(n))


@given(st.sampled_from([2, 3, 4, 7]), st.integers(1, 4), st.integers(3, 9), st.data())
def test_shares_one_after_the_other_are_the_batches_of_one_process(
    num_replicas: int, batch_size: int, full: int, data: st.DataObject
) -> None:
    size = num_replicas * batch_size
    # An empty last batch, or one that has a sample for each rank.
    n = full * size + data.draw(st.sampled_from([0, *range(num_replicas, size)]))
    for cls, settings in (
        (ReorderReuseSampler, {"n": n}),
        (SplitSampler, {"n": n + 9, "ratio": 9 / (n + 9)}),
    ):
        shared = {**settings, "batch_size": batch_size, "num_replicas": num_replicas}
        ranks, one = all_ranks(cls, shared), cls(**settings, batch_size=size)
        for _ in range(2):
            assert globally(ranks) == epoch_of(one)


def test_a_last_batch_smaller_than_the_ranks_takes_samples_of_the_one_before() -> None:
    one = epoch_of(ReorderReuseSampler(25, 8))
    four = globally([ReorderReuseSampler(25, 2, num_replicas=4, rank=rank) for rank in range(4)])
    assert [len(train) for train, _ in one] == [8, 8, 8, 1]
    assert [len(train) for train, _ in four] == [8, 8, 5, 4]
    assert sum((train for train, _ in four), []) == sum((train for train, _ in one), [])


def test_with_one_sample_per_rank_those_left_out_change_by_epoch() -> None:
    ranks = [ReorderReuseSampler(14, 1, num_replicas=3, rank=rank) for rank in range(3)]
    left_out = set()
    for _ in range(12):
        trained = {i for train, _ in globally(ranks) for i in train}
        assert len(trained) == 12
        left_out |= set(range(14)) - trained
    assert len(left_out) > 7


def test_workers_of_different_ranks_draw_different_numbers() -> None:
    class Noise(Dataset[torch.Tensor]):
        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> torch.Tensor:
            return torch.rand(())

    drawn = []
    for rank in range(2):
        sampler = ReorderReuseSampler(8, 2, num_replicas=2, rank=rank)
        drawn.append(next(iter(PairLoader(Noise(), sampler, num_workers=1)))[0])
    assert not torch.equal(*drawn)
