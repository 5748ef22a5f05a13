"""Pairs of batches of an epoch, or of what is left of it when the batch sizes change."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from reweight.samplers.repair import Repair

if TYPE_CHECKING:
    from reweight.samplers.global_sizes import GlobalSizes, Ints

# Independent random streams of one seed. SPLIT chooses what is held out, LOADER is PairLoader's.
TRAIN, DEV, REPAIR, SPLIT, LOADER = range(5)


@dataclass(frozen=True)
class Samples:
    """The samples of both problems and their orders.

    Args:
        seed: seed of all orders.
        train: indices of the samples for train batches.
        dev: indices of the samples for dev batches.
        distinct: whether the two batches of a pair have no sample in common, and a dev batch no
            sample twice.
    """

    seed: int
    train: Ints
    dev: Ints
    distinct: bool

    def train_order(self, epoch: int) -> Ints:
        """The train samples in the order of an epoch."""
        return np.random.default_rng([self.seed, epoch, TRAIN]).permutation(self.train)

    def dev_stream(self, start: int, stop: int) -> Ints:
        """Positions in ``dev``, from an endless stream of one permutation after another."""
        size = len(self.dev)
        passes = range(start // size, -(-stop // size))
        orders = [np.random.default_rng([self.seed, k, DEV]).permutation(size) for k in passes]
        stream: Ints = np.concatenate([np.zeros(0, dtype=np.int64), *orders])
        return stream[start - passes.start * size : stop - passes.start * size]


class Segment:
    """Consecutive pairs of one epoch, in batches of the same global sizes.

    Most epochs are one segment. Where training goes on with other sizes in the middle of an epoch,
    what is left of the epoch is a segment of its own: the train samples that were not used, and the
    dev samples that were drawn for pairs that were not used, followed by the stream of dev samples.

    Nothing of the size of the data is held: the batches are made again from the seed.

    Args:
        samples: the samples and their orders.
        sizes: sizes of the batches.
        epoch: number of the epoch.
        dev_start: position in the stream of dev samples, from which new ones are drawn.
        previous: the segment before this one in the epoch, and the number of its pairs that were
            used.

    Attributes:
        first_pair: how many pairs of the epoch come before this segment.
    """

    def __init__(
        self,
        samples: Samples,
        sizes: GlobalSizes,
        epoch: int,
        dev_start: int,
        previous: tuple[Segment, int] | None = None,
    ) -> None:
        self.samples, self.sizes, self.epoch, self.previous = samples, sizes, epoch, previous
        self.dev_start: int = dev_start
        self.train_edges: Ints
        self._dev_edges: Ints
        self.first_pair = self._train_start = self._num_left = 0
        if previous is not None:
            before, used = previous
            drawn = before._dev_edges[before._block_end(used)]
            self.first_pair = before.first_pair + used
            self._train_start = before._train_start + int(before.train_edges[used])
            self._num_left = int(max(drawn, before._num_left) - before._dev_edges[used])
            self.dev_start = before.dev_start + max(0, int(drawn) - before._num_left)
        self.train_edges = sizes.train_edges(len(samples.train) - self._train_start)
        most = len(samples.dev) if samples.distinct else None
        self._dev_edges = sizes.dev_edges(self.train_edges, most)
        self.num_pairs = len(self.train_edges) - 1
        # Dev batches are made for a block of pairs at a time, about one pass over the dev samples,
        # so that memory stays in proportion to the number of samples.
        largest = max(1, int(np.diff(self._dev_edges).max(initial=0)))
        num_blocks = max(1, self.num_pairs // max(2, -(-len(samples.dev) // largest)))
        self._blocks = [self.num_pairs * block // num_blocks for block in range(num_blocks + 1)]

    def rest(self, used: int, sizes: GlobalSizes) -> Segment:
        """The pairs after the first ``used`` ones, in batches of other sizes."""
        return Segment(self.samples, sizes, self.epoch, self.dev_start, (self, used))

    @property
    def dev_end(self) -> int:
        """Position in the stream of dev samples where the next epoch begins."""
        return self.dev_start + max(0, int(self._dev_edges[-1]) - self._num_left)

    def smallest(self, position: int) -> int:
        """Size of the smallest batch from pair ``position`` on."""
        edges = self.train_edges[position:], self._dev_edges[position:]
        return int(min(np.diff(side).min() for side in edges))

    def batches(self, position: int) -> Iterator[tuple[Ints, Ints]]:
        """The global batches of the pairs from ``position`` on: train indices, dev indices."""
        order = self.samples.train_order(self.epoch)
        train, left = order[self._train_start :], self._left(order)
        for first, end in pairwise(self._blocks):
            if end <= position:
                continue
            block = self.samples.dev[self._dev_block(first, end, order, left)]
            for pair in range(max(first, position), end):
                start, stop = self._dev_edges[pair : pair + 2] - self._dev_edges[first]
                yield train[slice(*self.train_edges[pair : pair + 2])], block[start:stop]

    def _block_end(self, pair: int) -> int:
        """The end of the block that ``pair`` is inside of; ``pair`` itself where a block begins."""
        return next(end for end in self._blocks if end >= pair)

    def _left(self, order: Ints) -> Ints:
        """Dev samples that earlier segments of the epoch drew and did not use."""
        if self.previous is None:
            return np.zeros(0, dtype=np.int64)
        before, used = self.previous
        left, edges = before._left(order), before._dev_edges
        end = before._block_end(used)
        unused = left[edges[end] :]
        if end > used:
            first = max(block for block in before._blocks if block <= used)
            block = before._dev_block(first, end, order, left)
            unused = np.concatenate([block[edges[used] - edges[first] :], unused])
        return unused

    def _dev_block(self, first: int, end: int, order: Ints, left: Ints) -> Ints:
        """Dev samples of the pairs ``first`` to ``end - 1``, one batch after the other."""
        start, stop = (int(self._dev_edges[pair]) for pair in (first, end))
        new = (self.dev_start + max(0, at - len(left)) for at in (start, stop))
        block = np.concatenate([left[start:stop], self.samples.dev_stream(*new)])
        if self.samples.distinct:
            pairs = np.arange(self.num_pairs)
            pair = np.repeat(pairs[first:end], np.diff(self._dev_edges[first : end + 1]))
            train_pair = np.full(len(self.samples.dev), -1, dtype=np.int32)
            if self.samples.train is self.samples.dev:
                train = order[self._train_start :][: self.train_edges[-1]]
                train_pair[train] = np.repeat(pairs, np.diff(self.train_edges))
            words = [self.samples.seed, self.epoch, REPAIR, self.first_pair + first]
            Repair(block, pair, train_pair, np.random.default_rng(words)).run()
        return block
