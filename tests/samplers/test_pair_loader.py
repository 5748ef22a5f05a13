"""A loader gives the batches of its sampler's pairs, with workers too, and resumes where it was."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from _support.samplers import epoch_of
from reweight import PairLoader, ReorderReuseSampler, SplitSampler

N = 24
Pairs = list[tuple[list[int], list[int]]]


class Ids(Dataset[int]):
    """Samples that are their own index."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> int:
        return index


class Noisy(Ids):
    """Samples with a random number, as an augmentation draws one."""

    def __getitem__(self, index: int) -> Any:
        return index, torch.rand(())


def reuse(**options: Any) -> ReorderReuseSampler:
    return ReorderReuseSampler(N, 5, seed=3, **options)


def loaded(loader: Any, count: int | None = None) -> Pairs:
    pairs = []
    for train, dev in loader:
        pairs.append((train.tolist(), dev.tolist()))
        if len(pairs) == count:
            break
    return pairs


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    "make", [reuse, lambda: SplitSampler(N, 0.25, 4, seed=1)], ids=["reuse", "split"]
)
def test_batches_are_those_of_the_samplers_pairs(make: Any, num_workers: int) -> None:
    alone, loader = make(), PairLoader(Ids(), make(), num_workers=num_workers)
    assert len(loader) == len(alone)
    for _ in range(2):
        assert loaded(loader) == epoch_of(alone)


def test_a_plain_dataloader_would_stack_the_two_batches_or_leave_an_epoch_out() -> None:
    """Why the loader exists; should a later torch mend either, its docstring has to change."""
    dataset = TensorDataset(torch.arange(N))
    sampler = ReorderReuseSampler(N, 6)
    train, dev = next(iter(ReorderReuseSampler(N, 6)))
    (stacked,) = next(iter(DataLoader(dataset, batch_sampler=sampler)))
    assert torch.equal(stacked, torch.stack([train, dev]))
    first, second = reuse(), reuse()
    obvious = DataLoader(Ids(), batch_size=None, sampler=first, num_workers=1, collate_fn=list)
    iter(obvious)
    iter(second)
    iter(second)
    assert first.state_dict()["epoch"] == second.state_dict()["epoch"] == 1


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("count", [1, 3, 5, 7])
def test_a_loader_resumes_after_the_last_pair_that_was_handed_out(
    num_workers: int, count: int
) -> None:
    whole = PairLoader(Ids(), reuse())
    expected = [pair for _ in range(3) for pair in loaded(whole)]
    stopped = PairLoader(Ids(), reuse(), num_workers=num_workers)
    seen = loaded(stopped, count)
    if count > len(seen):
        seen += loaded(stopped, count - len(seen))
    resumed = PairLoader(Ids(), reuse(), num_workers=num_workers)
    resumed.load_state_dict(stopped.state_dict())
    assert resumed.state_dict() == stopped.state_dict()
    while len(seen) < len(expected):
        seen += loaded(resumed)
    assert seen == expected


def test_a_state_of_the_loader_is_one_of_the_sampler() -> None:
    loader, sampler = PairLoader(Ids(), reuse()), reuse()
    first = loaded(loader, 2)
    sampler.load_state_dict(loader.state_dict())
    assert first + epoch_of(sampler) == epoch_of(reuse())


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_epoch_that_was_left_early_does_not_disturb_the_next(num_workers: int) -> None:
    alone = reuse()
    epoch_of(alone)
    loader = PairLoader(Ids(), reuse(), num_workers=num_workers)
    left = iter(loader)
    next(left)
    rest = iter(loader)
    next(left)
    assert loaded(rest) == epoch_of(alone)
    assert (loader.state_dict()["epoch"], loader.state_dict()["position"]) == (2, 0)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_global_random_state_is_neither_read_nor_changed(num_workers: int) -> None:
    loader = PairLoader(Ids(), reuse(), num_workers=num_workers)
    before = torch.get_rng_state()
    loaded(loader)
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_draw_the_same_numbers_again_and_others_in_each_epoch() -> None:
    def epochs() -> list[torch.Tensor]:
        loader = PairLoader(Noisy(), reuse(), num_workers=1)
        return [torch.cat([noise for (_, noise), _ in loader]) for _ in range(2)]

    torch.manual_seed(0)
    first = epochs()
    torch.manual_seed(1)
    again = epochs()
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], first[1])
    resumed = PairLoader(Noisy(), reuse(), num_workers=1)
    resumed.load_state_dict({**reuse().state_dict(), "epoch": 1})
    assert torch.equal(torch.cat([noise for (_, noise), _ in resumed]), first[1])


def test_a_collate_function_makes_each_batch_and_many_samples_are_asked_for_at_once() -> None:
    class Many(Ids):
        def __getitems__(self, indices: list[int]) -> list[str]:
            return [f"sample {i}" for i in indices]

    train, dev = next(iter(PairLoader(Many(), reuse(), collate_fn=tuple)))
    expected = next(iter(reuse()))
    assert (train, dev) == tuple(tuple(f"sample {i}" for i in batch.tolist()) for batch in expected)


def test_an_error_of_the_data_set_is_the_users_own() -> None:
    class Broken(Ids):
        def __getitem__(self, index: int) -> int:
            raise OSError("no such file")

    with pytest.raises(OSError, match="no such file"):
        next(iter(PairLoader(Broken(), reuse())))


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"dataset has 3 samples.*n = 24"):
        PairLoader(TensorDataset(torch.arange(3)), reuse())
    with pytest.raises(TypeError, match="sampler is a RandomSampler"):
        PairLoader(Ids(), torch.utils.data.RandomSampler(Ids()))  # type: ignore[arg-type]

    class Stream(IterableDataset[int]):
        def __iter__(self) -> Iterator[int]:
            return iter(range(N))

    with pytest.raises(TypeError, match="dataset is a Stream without a length"):
        PairLoader(Stream(), reuse())
    with pytest.raises(ValueError, match="num_workers = -1"):
        PairLoader(Ids(), reuse(), num_workers=-1)
