"""Dev batches come again and again, resume, and leave the random numbers of a training alone."""

from __future__ import annotations

import random
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, RandomSampler

from reweight.integrations._dev_batches import DevBatches


class Noisy(Dataset[Tensor]):
    """Ten samples, with noise from all three sources of random numbers."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, i: int) -> Tensor:
        return torch.tensor([float(i), float(torch.rand(())), random.random(), np.random.rand()])


def loader(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "its own generator":
        return DataLoader(Noisy(), 4, shuffle=True, generator=torch.Generator().manual_seed(7))
    if kind == "with replacement":
        sampler = RandomSampler(Noisy(), replacement=True, num_samples=70)
        return DataLoader(Noisy(), 4, sampler=sampler)
    if kind == "workers":
        return DataLoader(Noisy(), 4, shuffle=True, num_workers=2)
    return DataLoader(Noisy(), 4, shuffle=True)


KINDS = ["shuffled", "its own generator", "with replacement"]


def equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(map(torch.equal, first, second))


@pytest.mark.parametrize(
    ("kind", "drawn"),
    [
        *((kind, drawn) for kind in KINDS for drawn in (0, 2, 3, 7)),
        pytest.param("workers", 4, marks=pytest.mark.slow),
    ],
)
def test_a_resumed_loader_gives_the_batches_that_were_to_come(kind: str, drawn: int) -> None:
    whole = list(islice(DevBatches(loader(kind)), 10))
    first = DevBatches(loader(kind))
    started = list(islice(first, drawn))
    second = DevBatches(loader(kind))
    torch.manual_seed(5)
    list(islice(second, 1))  # a loaded state replaces what was drawn before
    second.load_state_dict(first.state_dict())
    assert equal(started + list(islice(second, 10 - drawn)), whole)


@pytest.mark.parametrize("kind", KINDS)
def test_random_numbers_of_the_training_are_left_as_they_are(kind: str) -> None:
    dev = loader(kind)
    batches, own = DevBatches(dev), dev.generator
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    drawn = own.get_state() if own else None
    list(islice(batches, 5))
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]
    assert own is None or torch.equal(own.get_state(), drawn)


def test_every_epoch_has_every_sample_in_another_order_and_with_other_noise() -> None:
    epochs = [torch.cat(list(islice(batches, 3))) for batches in [DevBatches(loader(""))] * 2]
    orders = [epoch[:, 0].tolist() for epoch in epochs]
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1]) == [*range(10)]
    assert torch.cat(epochs)[:, 1].unique().numel() == 20


def test_a_distributed_sampler_has_another_order_in_every_epoch() -> None:
    parts = []
    for rank in range(2):
        sampler = DistributedSampler(Noisy(), num_replicas=2, rank=rank)
        batches = DevBatches(DataLoader(Noisy(), 5, sampler=sampler))
        parts.append([batch[:, 0].tolist() for batch in islice(batches, 2)])
    for first, second in zip(*parts, strict=True):
        assert sorted(first + second) == [*range(10)]
    assert parts[0][0] != parts[0][1]


def test_batches_are_placed() -> None:
    assert next(DevBatches([1], lambda batch: batch + 1)) == 2


@pytest.mark.parametrize("given", [iter([1]), (x for x in [1]), 3])
def test_what_can_be_read_only_once_is_refused(given: Any) -> None:
    with pytest.raises(TypeError, match=r"dev_loader is a .*\[dev_batch\]"):
        DevBatches(given)


def test_a_loader_without_batches_is_refused() -> None:
    with pytest.raises(ValueError, match="dev_loader has no batches"):
        next(DevBatches([]))


def test_a_shorter_loader_than_that_of_the_checkpoint_is_refused() -> None:
    long = DevBatches([1, 2, 3, 4])
    list(islice(long, 3))
    short = DevBatches([1, 2])
    short.load_state_dict(long.state_dict())
    with pytest.raises(ValueError, match="the dev data have 2 batches.*after batch 3"):
        next(short)
