"""Pairs of batches from a data set and a sampler of pairs of indices."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Sampler,
    default_collate,
    get_worker_info,
)

from reweight.samplers._arguments import at_least
from reweight.samplers.pairs import Cursor, Pair, PairSampler
from reweight.samplers.segment import LOADER

# A pair of indices, and the seed of what workers draw for it.
_Seeded = tuple[int, Pair]


class PairLoader:
    """Loads (train_batch, dev_batch) for every pair of indices of a sampler, in workers if asked.

    Do not give a sampler of pairs to a ``DataLoader``: as ``batch_sampler=`` it takes a pair for a
    batch of two samples and stacks the train rows and the dev rows; as ``sampler=`` with workers it
    begins two epochs at once and leaves one out.

    Each ``iter()`` is one epoch. The state counts the pairs that were handed out, not those that
    workers have loaded ahead. What workers draw from the global generators of torch, numpy and
    Python for a pair depends on the sampler's seed and rank, the epoch and the pair only: not on
    their number, and not on where an epoch was resumed. So no global random state is read or
    changed. Without workers the data set draws from the random state of this process.

    Args:
        dataset: samples by index, with ``__getitem__`` and ``__len__``.
        sampler: a :class:`ReorderReuseSampler` or :class:`SplitSampler` over as many samples. The
            loader moves it, so use it nowhere else.
        collate_fn: makes a batch of a list of samples, as for ``DataLoader``; called once for the
            train batch and once for the dev batch.
        num_workers: processes that load pairs ahead; 0: this process loads them.
        pin_memory: copy the tensors of the batches to page-locked memory, for a faster way to a
            GPU.

    Yields:
        Pairs (train_batch, dev_batch) of what ``collate_fn`` returns.

    Raises:
        TypeError: ``dataset`` has no length or no samples by index, or ``sampler`` is no sampler of
            pairs.
        ValueError: the sampler is for another number of samples than ``dataset`` has, or
            ``num_workers`` is negative.

    Example:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> from reweight import PairLoader, ReorderReuseSampler
        >>> dataset = TensorDataset(torch.arange(6.0), torch.arange(6))
        >>> loader = PairLoader(dataset, ReorderReuseSampler(6, batch_size=2))
        >>> len(loader)
        3
        >>> for (x, ids), (x_dev, ids_dev) in loader:
        ...     print(x.shape, set(ids.tolist()) & set(ids_dev.tolist()))
        torch.Size([2]) set()
        torch.Size([2]) set()
        torch.Size([2]) set()
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        sampler: PairSampler,
        *,
        collate_fn: Callable[[list[Any]], Any] = default_collate,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.dataset, self.sampler = dataset, sampler
        _check(dataset, sampler)
        num_workers = at_least(0, "num_workers", num_workers)
        self._epoch = _Epoch(sampler)
        self._generator = torch.Generator()
        self._loader = DataLoader(
            _Pairs(dataset, collate_fn),
            batch_size=None,  # an index is a whole pair
            sampler=self._epoch,
            collate_fn=_as_it_is,
            num_workers=num_workers,
            pin_memory=pin_memory,
            generator=self._generator,
        )
        self._cursor: Cursor | None = None

    def __len__(self) -> int:
        """Number of pairs in an epoch."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        """Begin the next epoch, or continue the one that ``load_state_dict`` restored."""
        self._epoch.pairs = iter(self.sampler)
        # An iterator that was left early moves its own cursor only.
        self._cursor = cursor = replace(self.sampler._cursor)
        words = [self.sampler.seed, cursor.segment.epoch, LOADER, self.sampler.rank]
        self._generator.manual_seed(_seed(words))
        self._epoch.words = words, cursor.segment.first_pair + cursor.position
        return self._batches(iter(self._loader), cursor)

    def _batches(
        self, loaded: Iterator[tuple[Any, Any]], cursor: Cursor
    ) -> Iterator[tuple[Any, Any]]:
        for batches in loaded:
            cursor.position += 1
            yield batches

    def state_dict(self) -> dict[str, Any]:
        """What is needed to continue after the last pair that was handed out.

        Returns:
            A state of the sampler: plain numbers and strings, for ``load_state_dict`` of a loader
            or of the sampler itself.
        """
        return self.sampler._state_at(self._cursor or self.sampler._cursor)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next ``iter()`` continue where ``state`` was taken.

        Args:
            state: what ``state_dict`` returned, of a loader with an equal sampler.

        Raises:
            ValueError: ``state`` is of a sampler with another configuration, or is no such state.
        """
        self.sampler.load_state_dict(state)
        self._cursor = None


class _Epoch(Sampler[_Seeded]):
    """The pairs of one epoch; a ``DataLoader`` with workers asks for an iterator more than once."""

    def __init__(self, sampler: PairSampler) -> None:
        self.sampler = sampler
        self.pairs: Iterator[Pair] = iter(())
        self.words: tuple[list[int], int] = [], 0

    def __iter__(self) -> Iterator[_Seeded]:
        words, first = self.words
        return ((_seed([*words, n]), pair) for n, pair in enumerate(self.pairs, first))

    def __len__(self) -> int:
        return len(self.sampler)


class _Pairs(Dataset[tuple[Any, Any]]):
    """The two batches of a pair of indices."""

    def __init__(self, dataset: Dataset[Any], collate_fn: Callable[[list[Any]], Any]) -> None:
        self.dataset, self.collate_fn = dataset, collate_fn

    def __getitem__(self, seeded: _Seeded) -> tuple[Any, Any]:
        seed, (train, dev) = seeded
        if get_worker_info() is not None:
            # A worker does not know what those before it drew when an epoch is resumed.
            torch.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
        return self._batch(train.tolist()), self._batch(dev.tolist())

    def _batch(self, indices: list[int]) -> Any:
        # As DataLoader: a data set may load many samples at once.
        many = getattr(self.dataset, "__getitems__", None)
        return self.collate_fn(many(indices) if many else [self.dataset[i] for i in indices])


def _seed(words: list[int]) -> int:
    return int(np.random.SeedSequence(words).generate_state(1)[0])


def _as_it_is(batches: Any) -> Any:
    return batches


def _check(dataset: Any, sampler: Any) -> None:
    if not isinstance(sampler, PairSampler):
        raise TypeError(
            f"sampler is a {type(sampler).__name__}, which yields no pairs of train and dev "
            "indices; pass ReorderReuseSampler(len(dataset), batch_size) or a SplitSampler"
        )
    by_index = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    if isinstance(dataset, IterableDataset) or not by_index:
        raise TypeError(
            f"dataset is a {type(dataset).__name__} without a length or without samples by index, "
            "and a dev batch needs samples by index; pass a data set with __getitem__ and __len__, "
            "such as a list of the samples"
        )
    if len(dataset) != sampler.n:
        raise ValueError(
            f"dataset has {len(dataset)} samples, but the sampler is for n = {sampler.n}; build "
            f"it as {type(sampler).__name__}(len(dataset), ...)"
        )
