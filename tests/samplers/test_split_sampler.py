"""The held-out split."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given

from _support.samplers import all_ranks, epoch_of, globally, split_settings
from reweight.samplers import SplitSampler


@given(split_settings())
def test_held_out_samples_are_fixed_and_never_train(settings: dict[str, Any]) -> None:
    held_out = round(settings["ratio"] * settings["n"])
    trained: set[int] = set()
    asked: set[int] = set()
    samplers = all_ranks(SplitSampler, settings)
    for _ in range(3):
        for sampler in samplers:
            for train, dev in epoch_of(sampler):
                trained |= set(train)
                asked |= set(dev)
    assert not trained & asked
    assert len(asked) <= held_out
    assert len(trained) <= settings["n"] - held_out
    if settings["num_replicas"] == 1 or settings["batch_size"] > 1:
        assert len(trained) == settings["n"] - held_out


@given(split_settings())
def test_split_dev_batches_hold_no_sample_twice_and_are_capped_by_the_split(
    settings: dict[str, Any],
) -> None:
    num_replicas, wanted = settings["num_replicas"], settings["dev_batch_size"]
    for train, dev in globally(all_ranks(SplitSampler, settings)):
        size = len(train) if wanted is None else wanted * num_replicas
        assert len(dev) == min(size, round(settings["ratio"] * settings["n"]))
        assert len(set(dev)) == len(dev)


def test_split_dev_batches_cycle_through_the_held_out_samples() -> None:
    sampler = SplitSampler(120, 0.25, 9, dev_batch_size=10)
    served: Counter[int] = Counter()
    for epoch in range(1, 5):
        for _, dev in epoch_of(sampler):
            served.update(dev)
        # 90 train samples make 10 pairs of 10 dev samples: 100 of 30, three passes and a third.
        assert len(served) == 30
        assert max(served.values()) - min(served.values()) <= 1
        assert sum(served.values()) == 100 * epoch


def test_the_seed_decides_what_is_held_out() -> None:
    held_out = {
        frozenset(i for _, dev in epoch_of(SplitSampler(40, 0.25, 5, seed=seed)) for i in dev)
        for seed in (0, 0, 1)
    }
    assert len(held_out) == 2


def test_a_small_ratio_still_holds_out_one_sample() -> None:
    pairs = epoch_of(SplitSampler(10, 0.001, 3))
    assert {len(dev) for _, dev in pairs} == {1}
    assert len({dev[0] for _, dev in pairs}) == 1
