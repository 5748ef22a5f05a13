"""Pairs of a train batch and a dev batch, in an order that can be resumed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from reweight.samplers._arguments import at_least, optional_size, replica
from reweight.samplers.repair import Repair

if TYPE_CHECKING:
    from reweight.samplers.repair import Ints

Pair = tuple[torch.Tensor, torch.Tensor]

# Independent random streams of one seed. SPLIT is SplitSampler's.
TRAIN, DEV, REPAIR, SPLIT = range(4)


@dataclass
class _Cursor:
    """The position in one epoch."""

    epoch: int = 0
    position: int = 0


class PairSampler(ABC):
    """Epochs of (train, dev) index batches over two sets of samples, resumable.

    The dev batches are consecutive pieces of an endless stream: one permutation of the dev
    samples after another. All batches are built globally; then each replica takes its share.

    Subclasses choose the samples by :meth:`_arrange`.

    Args:
        n: number of samples.
        batch_size: train samples per pair and replica.
        dev_batch_size: dev samples per pair and replica; ``None``: as many as train samples.
        seed: seed of all orders.
        num_replicas: number of processes that share each pair.
        rank: index of this process.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        dev_batch_size: int | None,
        seed: int,
        num_replicas: int,
        rank: int,
    ) -> None:
        self.n = at_least(1, "n", n)
        self.batch_size = at_least(1, "batch_size", batch_size)
        self.dev_batch_size = optional_size(dev_batch_size)
        self.seed = at_least(0, "seed", seed)
        self.num_replicas, self.rank = replica(num_replicas, rank)
        self._cursor = _Cursor()
        self._begun = False

    def _arrange(
        self, train_samples: Ints, dev_samples: Ints, dev_batch_size: int, *, distinct: bool
    ) -> None:
        """Fix the two sets of samples and the sizes of an epoch.

        Args:
            train_samples: indices of the samples for train batches.
            dev_samples: indices of the samples for dev batches.
            dev_batch_size: dev samples per pair and replica.
            distinct: whether the two batches of a pair have no sample in common, and a dev batch no
                sample twice.
        """
        self._train_samples, self._dev_samples = train_samples, dev_samples
        self._distinct = distinct
        self._batch = self.batch_size * self.num_replicas
        self._dev_batch = dev_batch_size * self.num_replicas
        # Equal counts on every rank: the remainder is left out, other samples in each epoch.
        self._num_train = len(train_samples) // self.num_replicas * self.num_replicas
        self._num_pairs = -(-self._num_train // self._batch)
        last = self._dev_batch
        if self.dev_batch_size is None:  # as small as the epoch's last train batch
            last = min(self._num_train - (self._num_pairs - 1) * self._batch, last)
        self._num_dev = (self._num_pairs - 1) * self._dev_batch + last

    @property
    def _wanted_dev_size(self) -> int:
        return self.batch_size if self.dev_batch_size is None else self.dev_batch_size

    @abstractmethod
    def _choice(self) -> dict[str, Any]:
        """The arguments of the subclass that the order depends on."""

    def _config(self) -> dict[str, Any]:
        """What the order depends on; only a sampler with the same values can load a state."""
        return {
            "sampler": type(self).__name__,
            "n": self.n,
            "batch_size": self.batch_size,
            "dev_batch_size": self.dev_batch_size,
            "seed": self.seed,
            "num_replicas": self.num_replicas,
            **self._choice(),
        }

    def __len__(self) -> int:
        """Number of pairs in an epoch, the same on every rank."""
        return self._num_pairs

    def __iter__(self) -> Iterator[Pair]:
        """Begin the next epoch, or continue the one that ``load_state_dict`` restored."""
        if self._begun:
            self._cursor = _Cursor(self._cursor.epoch + 1)
        self._begun = True
        # The iterator moves this cursor only, so an abandoned iterator does not change the state.
        return self._pairs(self._cursor)

    def state_dict(self) -> dict[str, Any]:
        """What is needed to continue from here: plain numbers and strings, equal on all ranks.

        A pair counts as consumed when it is yielded, so with a loader that prefetches the state is
        ahead of the training. After an epoch's last pair the state is that of the start of the next
        epoch.

        Returns:
            The configuration and the position, for ``load_state_dict``.
        """
        epoch, position = self._cursor.epoch, self._cursor.position
        if position == self._num_pairs:
            epoch, position = epoch + 1, 0
        return {**self._config(), "epoch": epoch, "position": position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next ``iter()`` continue where ``state`` was taken, bit for bit.

        Args:
            state: what ``state_dict`` returned, on any rank of an equal sampler.

        Raises:
            ValueError: ``state`` is of a sampler with another configuration, or is no such state.
        """
        if not isinstance(state, Mapping):
            raise ValueError(
                f"state is {type(state).__name__}, not what {type(self).__name__}.state_dict() "
                "returns; pass the sampler's own entry of the checkpoint"
            )
        config = self._config()
        missing = sorted({*config, "epoch", "position"} - set(state))
        if missing:
            raise ValueError(
                f"state has no {', '.join(missing)}: it is not from {type(self).__name__}."
                "state_dict(); pass the sampler's own entry of the checkpoint"
            )
        differing = [
            f"{name} (state: {state[name]!r}, sampler: {value!r})"
            for name, value in config.items()
            if state[name] != value
        ]
        if differing:
            raise ValueError(
                f"state was taken from a sampler with another {', '.join(differing)}, whose order "
                "cannot be continued here; build the sampler as it was, or start without the state"
            )
        epoch = at_least(0, "state['epoch']", state["epoch"])
        position = at_least(0, "state['position']", state["position"])
        if position >= self._num_pairs:
            raise ValueError(
                f"state['position'] = {position}, but an epoch has {self._num_pairs} pairs; "
                "the state is damaged: load another checkpoint"
            )
        self._cursor = _Cursor(epoch, position)
        self._begun = False

    def _pairs(self, cursor: _Cursor) -> Iterator[Pair]:
        rng = np.random.default_rng([self.seed, cursor.epoch, TRAIN])
        train = rng.permutation(self._train_samples)[: self._num_train]
        # Dev batches are made for a block of pairs at a time, about one pass over the dev samples,
        # so that memory stays in proportion to the number of samples.
        pass_length = max(2, -(-len(self._dev_samples) // self._dev_batch))
        num_blocks = max(1, self._num_pairs // pass_length)
        edges = [self._num_pairs * block // num_blocks for block in range(num_blocks + 1)]
        for first, end in pairwise(edges):
            if end <= cursor.position:
                continue
            dev = self._dev_block(cursor.epoch, first, end, train)
            for pair in range(max(first, cursor.position), end):
                cursor.position = pair + 1
                at = (pair - first) * self._dev_batch
                yield (
                    self._share(train[pair * self._batch : (pair + 1) * self._batch]),
                    self._share(dev[at : at + self._dev_batch]),
                )

    def _share(self, batch: Ints) -> torch.Tensor:
        # A copy, so that the caller may keep it or write to it.
        return torch.from_numpy(batch[self.rank :: self.num_replicas].copy())

    def _dev_block(self, epoch: int, first: int, end: int, train: Ints) -> Ints:
        """Dev samples of the pairs ``first`` to ``end - 1``, one batch after the other."""
        size = len(self._dev_samples)
        start = epoch * self._num_dev + first * self._dev_batch
        stop = epoch * self._num_dev + min(end * self._dev_batch, self._num_dev)
        passes = range(start // size, -(-stop // size))
        stream = np.concatenate(
            [np.random.default_rng([self.seed, k, DEV]).permutation(size) for k in passes]
        )
        block: Ints = stream[start - passes[0] * size : stop - passes[0] * size]
        if self._distinct:
            pair = first + np.arange(len(block)) // self._dev_batch
            copy = np.arange(start, stop) // size - passes[0]
            train_pair = np.full(size, -1, dtype=np.int32)
            if self._train_samples is self._dev_samples:
                train_pair[train] = np.arange(len(train)) // self._batch
            rng = np.random.default_rng([self.seed, epoch, REPAIR, first])
            Repair(block, pair, copy, len(passes), train_pair, rng).run()
        dev: Ints = self._dev_samples[block]
        return dev
