"""Batches for the Trainer: a column that its collators would drop, and those of the dev set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Sampler

from reweight.integrations._dev_batches import DevBatches

Collator = Callable[[list[Any]], dict[str, Any]]


class KeepColumn:
    """A data collator that adds one column of numbers to the batches of another collator.

    Collators fail at columns that they do not know, or drop them.

    Args:
        collator: makes a batch of the other columns.
        column: the name of the column; examples without it are passed on as they are.

    Raises:
        TypeError: examples that are not mappings, or values that are not numbers.

    Example:
        >>> keep = KeepColumn(lambda examples: {"rows": len(examples)}, "source")
        >>> keep([{"text": "a", "source": 1}, {"text": "b", "source": 0}])
        {'rows': 2, 'source': tensor([1, 0])}
    """

    def __init__(self, collator: Collator, column: str) -> None:
        self.collator, self.column = collator, column

    def __call__(self, examples: list[Any]) -> dict[str, Any]:
        """The batch of some examples."""
        if not isinstance(examples[0], Mapping):
            raise TypeError(
                f"examples are of type {type(examples[0]).__name__}, in which the column "
                f"{self.column!r} cannot be looked up: let the data set return dicts"
            )
        if self.column not in examples[0]:
            return self.collator(examples)
        values = [example[self.column] for example in examples]
        others = [{k: v for k, v in one.items() if k != self.column} for one in examples]
        try:
            column = torch.as_tensor(values)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"the column {self.column!r} must hold one number per example, got "
                f"{values[0]!r}. Number the groups from 0; with the package datasets: "
                f"dataset.class_encode_column({self.column!r})"
            ) from error
        return {**self.collator(others), self.column: column}


class Dealt(BatchSampler):
    """Batches of which each process has its part: every ``size``-th sample.

    All processes draw the same order, so the position of one of them is that of all.
    """

    def __init__(self, sampler: Sampler[int], batch_size: int, rank: int, size: int) -> None:
        super().__init__(sampler, batch_size, drop_last=True)
        self._own = slice(rank, None, size)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in super().__iter__():
            yield batch[self._own]


def dev_batches(
    dataset: Any, collate: Collator, batch_size: int, seed: int, rank: int = 0, size: int = 1
) -> DevBatches:
    """Endless batches of the dev set: each pass in an order of its own, known from the seed.

    Args:
        dataset: has a length and is read by index.
        collate: makes a batch of examples.
        batch_size: samples in a batch of all processes, the whole set where this is smaller. The
            samples of a pass that do not fill a batch are left to the next passes.
        seed: of the orders.
        rank: this process, which gets its part of each batch.
        size: the number of processes.

    Raises:
        TypeError: a data set without a length.
        ValueError: an empty data set, or less than a sample for each process.

    Example:
        >>> batches = dev_batches([10, 11, 12, 13], sorted, batch_size=2, seed=0)
        >>> sorted(next(batches) + next(batches))
        [10, 11, 12, 13]
    """
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise TypeError(
            f"dev_dataset is of type {type(dataset).__name__}, which has no length or no "
            "index: dev batches are drawn at random, so that it must be a map-style data set"
        )
    if not len(dataset):
        raise ValueError("dev_dataset is empty: there is nothing to learn the weights from")
    if len(dataset) < size:
        raise ValueError(
            f"dev_dataset has {len(dataset)} samples for {size} processes, and each of them needs "
            "at least one: use a larger dev set, or fewer processes"
        )
    order = RandomSampler(dataset, generator=torch.Generator().manual_seed(seed))
    dealt = Dealt(order, min(batch_size, len(dataset)), rank, size)
    loader = DataLoader(dataset, batch_sampler=dealt, collate_fn=collate)
    return DevBatches(loader)
