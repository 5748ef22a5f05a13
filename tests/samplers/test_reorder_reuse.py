"""Reorder and reuse: every sample serves both problems, fairly, and never in one pair."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from _support.samplers import all_ranks, epoch_of, globally, reuse_settings
from reweight.samplers import ReorderReuseSampler, SplitSampler


@given(st.integers(2, 60), st.data())
def test_every_epoch_trains_on_every_sample_once(n: int, data: st.DataObject) -> None:
    sampler = ReorderReuseSampler(n, data.draw(st.integers(1, n // 2)))
    orders = [sum((train for train, _ in epoch_of(sampler)), []) for _ in range(3)]
    for order in orders:
        assert sorted(order) == list(range(n))


@given(st.integers(2, 60), st.booleans(), st.data())
def test_every_epoch_asks_dev_of_every_sample_once(
    n: int, disjoint: bool, data: st.DataObject
) -> None:
    batch_size = data.draw(st.integers(1, n // 2))
    sampler = ReorderReuseSampler(n, batch_size, disjoint=disjoint)
    for _ in range(3):
        assert sorted(sum((dev for _, dev in epoch_of(sampler)), [])) == list(range(n))


@given(reuse_settings())
def test_no_sample_is_twice_in_a_pair_whatever_the_rank(settings: dict[str, Any]) -> None:
    for train, dev in globally(all_ranks(ReorderReuseSampler, settings)):
        assert len({*train, *dev}) == len(train) + len(dev)


@pytest.mark.parametrize("batch_size", [1, 7, 33, 49, 50])
@pytest.mark.parametrize("dev_batch_size", [None, 1, 20, 50])
def test_no_sample_is_twice_in_a_pair_over_many_epochs(
    batch_size: int, dev_batch_size: int | None
) -> None:
    sampler = ReorderReuseSampler(100, batch_size, dev_batch_size=dev_batch_size, seed=3)
    for _ in range(10):
        for train, dev in epoch_of(sampler):
            assert len({*train, *dev}) == len(train) + len(dev)


def test_without_disjointness_batches_do_meet() -> None:
    pairs = epoch_of(ReorderReuseSampler(100, 20, disjoint=False))
    assert any(set(train) & set(dev) for train, dev in pairs)


@given(reuse_settings(disjoint=False))
def test_the_raw_dev_order_is_one_permutation_after_another(settings: dict[str, Any]) -> None:
    n, samplers = settings["n"], all_ranks(ReorderReuseSampler, settings)
    stream: list[int] = []
    while len(stream) < 3 * n:
        stream += sum((dev for _, dev in globally(samplers)), [])
    for start in range(0, 3 * n, n):
        assert sorted(stream[start : start + n]) == list(range(n))


@pytest.mark.parametrize("dev_batch_size", [4, 9, 20, 30, 64])
def test_disjoint_dev_batches_serve_every_sample_equally_often(dev_batch_size: int) -> None:
    sampler = ReorderReuseSampler(200, 10, dev_batch_size=dev_batch_size, seed=2)
    served = Counter({sample: 0 for sample in range(200)})
    for _ in range(7):
        for _, dev in epoch_of(sampler):
            served.update(dev)
        # Swaps leave the stream's counts as they are: equal, but for a pass that is under way.
        assert max(served.values()) - min(served.values()) <= 1


@pytest.mark.parametrize(("n", "batch_size"), [(6, 2), (6, 3), (7, 2)])
def test_a_dev_sample_meets_every_other_sample_equally_often(n: int, batch_size: int) -> None:
    sampler = ReorderReuseSampler(n, batch_size, seed=0)
    epochs = 1500
    met = np.zeros((n, n))
    for _ in range(epochs):
        for train, dev in epoch_of(sampler):
            met[np.ix_(dev, train)] += 1
    expected = met.sum() / (n * (n - 1))
    assert np.all(np.diag(met) == 0)
    off_diagonal = met[~np.eye(n, dtype=bool)]
    # A cell is a count of at most one event an epoch, so its deviation is below sqrt(expected);
    # five of them leave a fair sampler room in all cells.
    assert np.abs(off_diagonal - expected).max() < 5 * np.sqrt(expected)


def test_dev_order_tells_of_the_train_order_only_what_disjointness_must() -> None:
    sampler = ReorderReuseSampler(40, 4, seed=5)
    met = np.zeros((10, 10))  # pair that trains on a sample, pair that asks dev of it
    epochs = 400
    for _ in range(epochs):
        pairs = epoch_of(sampler)
        trained_in = {i: pair for pair, (train, _) in enumerate(pairs) for i in train}
        for pair, (_, dev) in enumerate(pairs):
            for sample in dev:
                met[trained_in[sample], pair] += 1
    expected = epochs * 4 / 9  # 4 samples of each train batch over the 9 other pairs
    off_diagonal = met[~np.eye(10, dtype=bool)]
    # Counts of rare events: their deviation is about sqrt(expected), five of them are plenty.
    assert np.all(np.diag(met) == 0)
    assert np.abs(off_diagonal - expected).max() < 5 * np.sqrt(expected)


@given(reuse_settings(), st.integers(0, 3))
def test_orders_depend_on_seed_and_epoch_alone(settings: dict[str, Any], epochs: int) -> None:
    first, second = ReorderReuseSampler(**settings), ReorderReuseSampler(**settings)
    for _ in range(epochs):
        next(iter(first))  # leaves the epoch early
        epoch_of(second)
    assert epoch_of(first) == epoch_of(second)


def test_epochs_and_seeds_differ() -> None:
    sampler = ReorderReuseSampler(100, 10, seed=0)
    epochs = [epoch_of(sampler), epoch_of(sampler), epoch_of(ReorderReuseSampler(100, 10, seed=1))]
    for side in (0, 1):
        orders = [tuple(sum((pair[side] for pair in pairs), [])) for pairs in epochs]
        assert len(set(orders)) == 3


def test_global_random_states_are_neither_read_nor_moved() -> None:
    np.random.seed(0)
    torch.manual_seed(0)
    numpy_state, torch_state = np.random.get_state()[1].tolist(), torch.get_rng_state()
    first = epoch_of(ReorderReuseSampler(50, 8)), epoch_of(SplitSampler(50, 0.2, 8))
    assert np.random.get_state()[1].tolist() == numpy_state
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.random.seed(1)
    torch.manual_seed(1)
    assert first == (epoch_of(ReorderReuseSampler(50, 8)), epoch_of(SplitSampler(50, 0.2, 8)))
