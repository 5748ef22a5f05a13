"""Pairs of a train batch and a dev batch, in an order that can be resumed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from reweight.samplers._arguments import at_least, optional_size, replica
from reweight.samplers.global_sizes import GlobalSizes
from reweight.samplers.segment import Samples, Segment
from reweight.samplers.state import read, written

if TYPE_CHECKING:
    from reweight.samplers.global_sizes import Ints

Pair = tuple[torch.Tensor, torch.Tensor]


@dataclass
class Cursor:
    """The position in one epoch."""

    segment: Segment
    position: int = 0


class PairSampler(ABC):
    """Epochs of (train, dev) index batches over two sets of samples, resumable.

    The dev batches are consecutive pieces of an endless stream: one permutation of the dev
    samples after another. All batches are built globally; then each rank takes a piece of each,
    so that the pieces in the order of the ranks are the batch.

    Subclasses choose the samples by :meth:`_arrange`.

    Args:
        n: number of samples.
        batch_size: train samples per pair and rank, at most.
        dev_batch_size: dev samples per pair and rank, at most; ``None``: as many as train samples.
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
        self._sizes = GlobalSizes.of_ranks(self.batch_size, self.dev_batch_size, self.num_replicas)
        self._begun = False

    def _arrange(self, train_samples: Ints, dev_samples: Ints, *, distinct: bool) -> None:
        """Fix the two sets of samples.

        Args:
            train_samples: indices of the samples for train batches.
            dev_samples: indices of the samples for dev batches.
            distinct: whether the two batches of a pair have no sample in common, and a dev batch no
                sample twice.
        """
        self._samples = Samples(self.seed, train_samples, dev_samples, distinct)
        self._cursor = Cursor(Segment(self._samples, self._sizes, 0, 0))
        self._num_pairs = self._cursor.segment.num_pairs

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
            self._cursor = self._next_epoch(self._cursor.segment)
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
        return self._state_at(self._cursor)

    def _state_at(self, cursor: Cursor) -> dict[str, Any]:
        """What ``state_dict`` returns at a position."""
        if cursor.position == cursor.segment.num_pairs:
            cursor = self._next_epoch(cursor.segment)
        return {**self._config(), **written(cursor.segment, cursor.position)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next ``iter()`` continue where ``state`` was taken.

        With the ``num_replicas`` of the state, the pairs are those of a sampler that was not
        interrupted, bit for bit; the batch sizes have to be those of the state.

        With another ``num_replicas``, the batch sizes may be others too:

        - If ``batch_size * num_replicas`` and ``dev_batch_size * num_replicas`` are as before, so
          are the global batches to the end of the epoch. Only if one of them has fewer samples than
          there are now ranks, the next rule holds.
        - Otherwise, the train samples that the epoch did not use yet are cut into new batches. Each
          is used once; if they are fewer than the ranks, they are left out and the next epoch
          begins. With ``dev_batch_size=None``, the same holds for the dev samples, except for one
          that would stand in the train batch of its pair, which another sample replaces. With a
          ``dev_batch_size``, the dev samples that were drawn ahead and do not fit into what is left
          of the epoch are passed over.

        Args:
            state: what ``state_dict`` returned, on any rank, of a sampler with the same samples,
                seed and choices.

        Raises:
            ValueError: ``state`` is of a sampler with another configuration, or is no such state.
            TypeError: a number of ``state`` is not an integer.
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
        if state["num_replicas"] != self.num_replicas:
            for name in ("num_replicas", "batch_size", "dev_batch_size"):
                del config[name]
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
        self._cursor = self._adapted(*read(state, self._samples))
        self._begun = False

    def _adapted(self, segment: Segment, position: int) -> Cursor:
        """The same position, in batches that the ranks of this sampler can share."""
        while not position and segment.previous is not None:
            segment, position = segment.previous
        if not position:
            return Cursor(Segment(self._samples, self._sizes, segment.epoch, segment.dev_start))
        kept = segment.sizes[:2] == self._sizes[:2]
        if kept and segment.smallest(position) >= self.num_replicas:
            return Cursor(segment, position)
        segment = segment.rest(position, self._sizes)
        return Cursor(segment) if segment.num_pairs else self._next_epoch(segment)

    def _next_epoch(self, segment: Segment) -> Cursor:
        return Cursor(Segment(self._samples, self._sizes, segment.epoch + 1, segment.dev_end))

    def _pairs(self, cursor: Cursor) -> Iterator[Pair]:
        for train, dev in cursor.segment.batches(cursor.position):
            cursor.position += 1
            yield self._share(train), self._share(dev)

    def _share(self, batch: Ints) -> torch.Tensor:
        edges = (len(batch) * rank // self.num_replicas for rank in (self.rank, self.rank + 1))
        # A copy, so that the caller may keep it or write to it.
        return torch.from_numpy(batch[slice(*edges)].copy())
