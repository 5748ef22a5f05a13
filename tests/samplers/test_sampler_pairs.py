"""What every sampler's pairs are, and what an epoch costs to begin."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from hypothesis import given
from torch.utils.data import DataLoader

from _support.samplers import any_sampler, epoch_of, reuse_settings
from reweight.samplers import ReorderReuseSampler, SplitSampler


@given(any_sampler)
def test_pairs_are_int64_vectors_of_the_announced_number_and_sizes(choice: Any) -> None:
    cls, settings = choice
    sampler = cls(**settings)
    pairs = list(sampler)
    assert len(pairs) == len(sampler) > 0
    for position, (train, dev) in enumerate(pairs):
        for indices in (train, dev):
            assert indices.dtype == torch.int64
            assert indices.ndim == 1
            assert indices.device.type == "cpu"
            assert int(indices.min()) >= 0
            assert int(indices.max()) < settings["n"]
        if position < len(pairs) - (1 if settings["num_replicas"] == 1 else 2):
            assert len(train) == settings["batch_size"]
        assert 0 < len(train) <= settings["batch_size"]


@given(reuse_settings())
def test_dev_batches_have_their_size_and_by_default_that_of_the_train_batch(
    settings: dict[str, Any],
) -> None:
    for train, dev in ReorderReuseSampler(**settings):
        assert len(dev) == (settings["dev_batch_size"] or len(train))


def test_writing_into_a_batch_changes_no_later_batch() -> None:
    expected = epoch_of(ReorderReuseSampler(12, 3))
    seen = []
    for train, dev in ReorderReuseSampler(12, 3):
        seen.append((train.tolist(), dev.tolist()))
        train.zero_()
        dev.zero_()
    assert seen == expected


def test_a_data_loader_takes_the_pairs_as_batches() -> None:
    class Rows:
        def __getitem__(self, indices: torch.Tensor) -> torch.Tensor:
            return 10 * indices

    sampler = ReorderReuseSampler(12, 3)
    loader = DataLoader(Rows(), batch_sampler=sampler, collate_fn=tuple)
    loaded = [(train.tolist(), dev.tolist()) for train, dev in loader]
    assert loaded == [
        ([10 * i for i in train], [10 * i for i in dev])
        for train, dev in epoch_of(ReorderReuseSampler(12, 3))
    ]


@pytest.mark.parametrize(
    "make",
    [
        lambda n: ReorderReuseSampler(n, 256),
        lambda n: ReorderReuseSampler(n, 256, dev_batch_size=2048),
        lambda n: SplitSampler(n, 0.05, 256),
    ],
    ids=["reuse", "large dev batches", "split"],
)
def test_an_epoch_of_a_million_samples_begins_quickly(make: Any) -> None:
    sampler = make(1_000_000)
    start = time.process_time()
    next(iter(sampler))
    # Measured: 0.03 to 0.25 s. The bound is what a training loop would begin to notice.
    assert time.process_time() - start < 1.5
