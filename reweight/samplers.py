"""Where dev batches come from: reorder-and-reuse (BIAO §3.4) and the held-out split before it.

Both samplers yield *pairs* of index tensors, one batch for the inner problem and one for the
outer, and both stop and resume in the middle of an epoch. Orders are pure functions of the seed
and of the position, drawn from generators of their own: no global random state is read or moved.
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

_Ints = npt.NDArray[np.int64]
_Pair = tuple[torch.Tensor, torch.Tensor]

# Independent random streams of one seed.
_TRAIN, _DEV, _REPAIR, _SPLIT = range(4)

# Rounds of random partners before every partner is looked at. One or two are enough unless the
# batches nearly fill the data set; then each further round settles a share of what is left.
_ROUNDS = 64


@dataclass
class _Cursor:
    """How far one epoch has been handed out."""

    epoch: int = 0
    position: int = 0


class _PairSampler(ABC):
    """Epochs of (train, dev) index batches over two sets of samples, resumable.

    The dev batches are consecutive pieces of an endless stream: one permutation of the dev
    samples after another. All batches are built globally and then dealt out to the replicas.
    """

    def __init__(
        self,
        train_samples: _Ints,
        dev_samples: _Ints,
        *,
        batch_size: int,
        dev_batch_size: int,
        match_sizes: bool,
        distinct: bool,
        seed: int,
        num_replicas: int,
        rank: int,
    ) -> None:
        self._train_samples = train_samples
        self._dev_samples = dev_samples
        self._distinct = distinct
        self._seed = seed
        self._num_replicas = num_replicas
        self._rank = rank
        self._batch = batch_size * num_replicas
        self._dev_batch = dev_batch_size * num_replicas
        # Equal counts on every rank: what does not divide is left out, other samples each epoch.
        self._num_train = len(train_samples) // num_replicas * num_replicas
        self._num_pairs = -(-self._num_train // self._batch)
        tail = self._num_train - (self._num_pairs - 1) * self._batch
        last_dev_batch = min(tail, self._dev_batch) if match_sizes else self._dev_batch
        self._num_dev = (self._num_pairs - 1) * self._dev_batch + last_dev_batch
        self._cursor = _Cursor()
        self._begun = False

    @abstractmethod
    def _config(self) -> dict[str, Any]:
        """What the order depends on: a state is of use only to a sampler with the same."""

    def __len__(self) -> int:
        """Number of pairs in an epoch, the same on every rank."""
        return self._num_pairs

    def __iter__(self) -> Iterator[_Pair]:
        """Begin the next epoch, or go on with the one that ``load_state_dict`` restored."""
        if self._begun:
            self._cursor = _Cursor(self._cursor.epoch + 1)
        self._begun = True
        # The iterator moves this cursor only: one that was abandoned cannot disturb the state.
        return self._pairs(self._cursor)

    def state_dict(self) -> dict[str, Any]:
        """What is needed to go on from here: plain numbers and strings, equal on all ranks.

        A pair counts as consumed once it was yielded, so a loader that fetches ahead is ahead
        here too. After an epoch's last pair the state stands at the start of the next epoch.

        Returns:
            The configuration and the position, for ``load_state_dict``.
        """
        epoch, position = self._cursor.epoch, self._cursor.position
        if position == self._num_pairs:
            epoch, position = epoch + 1, 0
        return {**self._config(), "epoch": epoch, "position": position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next ``iter()`` go on where ``state`` was taken, bit for bit.

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
        epoch = _at_least(0, "state['epoch']", state["epoch"])
        position = _at_least(0, "state['position']", state["position"])
        if position >= self._num_pairs:
            raise ValueError(
                f"state['position'] = {position}, but an epoch has {self._num_pairs} pairs; "
                "the state is damaged: load another checkpoint"
            )
        self._cursor = _Cursor(epoch, position)
        self._begun = False

    def _pairs(self, cursor: _Cursor) -> Iterator[_Pair]:
        rng = np.random.default_rng([self._seed, cursor.epoch, _TRAIN])
        train = rng.permutation(self._train_samples)[: self._num_train]
        # Dev batches are made a block of pairs at a time, a block being about one pass over the
        # dev samples: memory stays that of the data's indices when dev batches are the larger.
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

    def _share(self, batch: _Ints) -> torch.Tensor:
        # A copy: a batch that is kept, or written to, leaves the epoch's arrays alone.
        return torch.from_numpy(batch[self._rank :: self._num_replicas].copy())

    def _dev_block(self, epoch: int, first: int, end: int, train: _Ints) -> _Ints:
        """Dev samples of the pairs ``first`` to ``end - 1``, one batch after the other."""
        size = len(self._dev_samples)
        start = epoch * self._num_dev + first * self._dev_batch
        stop = epoch * self._num_dev + min(end * self._dev_batch, self._num_dev)
        passes = range(start // size, -(-stop // size))
        stream = np.concatenate(
            [np.random.default_rng([self._seed, k, _DEV]).permutation(size) for k in passes]
        )
        block: _Ints = stream[start - passes[0] * size : stop - passes[0] * size]
        if self._distinct:
            pair = first + np.arange(len(block)) // self._dev_batch
            copy = np.arange(start, stop) // size - passes[0]
            train_pair = np.full(size, -1, dtype=np.int32)
            if self._train_samples is self._dev_samples:
                train_pair[train] = np.arange(len(train)) // self._batch
            rng = np.random.default_rng([self._seed, epoch, _REPAIR, first])
            _Repair(block, pair, copy, len(passes), train_pair, rng).run()
        dev: _Ints = self._dev_samples[block]
        return dev


class ReorderReuseSampler(_PairSampler):
    """Every sample serves both problems: the data in one order for train, in another for dev.

    The reorder-and-reuse strategy of BIAO (§3.4, figure 7; compared with splits in Table 3).
    An epoch's train batches are a permutation of all samples. The dev batches come from an
    independent, endless reshuffle of the same samples, so that all serve the outer problem
    equally often; with ``dev_batch_size=None`` each epoch's dev batches are a permutation too.

    What makes a dev batch a validation batch is that it differs from the train batch beside it.
    ``disjoint=True`` makes sure of that: where the two share a sample, the dev sample is swapped
    with one of another dev batch, chosen at random. Only where the sizes leave no swap is it
    replaced by an allowed sample, at random.

    Each ``iter()`` is one epoch; the first is epoch 0, and one that was left early is not taken up
    again, except from a state. Under data parallelism every rank builds the same pairs and takes
    its share, so that no dev batch of any rank meets a train batch of any rank.

    Args:
        n: number of samples.
        batch_size: train samples per pair and replica. An epoch's last batch may be smaller.
        dev_batch_size: dev samples per pair and replica. None: as many as train samples, in the
            last pair too.
        seed: of all orders, 0 or more. The same on every rank.
        disjoint: keep the two batches of a pair free of common samples, and dev batches free of
            repeated ones.
        num_replicas: number of processes that share each pair. Samples that do not divide among
            them are left out, other ones each epoch.
        rank: which of these processes this is, from 0.

    Yields:
        Pairs (train_indices, dev_indices) of 1-D int64 tensors on the CPU.

    Raises:
        ValueError: a number is out of range, or the two batches together exceed ``n`` although
            ``disjoint`` is set.
        TypeError: a number is not an integer.

    Example:
        >>> from reweight.samplers import ReorderReuseSampler
        >>> sampler = ReorderReuseSampler(6, 2, seed=1)
        >>> epoch = list(sampler)
        >>> [(len(train), len(dev)) for train, dev in epoch]
        [(2, 2), (2, 2), (2, 2)]
        >>> sorted(i for _, dev in epoch for i in dev.tolist())
        [0, 1, 2, 3, 4, 5]
        >>> any(set(train.tolist()) & set(dev.tolist()) for train, dev in epoch)
        False

        Stop after one pair of the next epoch, and go on in another process:

        >>> train, dev = next(iter(sampler))
        >>> resumed = ReorderReuseSampler(6, 2, seed=1)
        >>> resumed.load_state_dict(sampler.state_dict())
        >>> len(list(resumed))
        2
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        *,
        dev_batch_size: int | None = None,
        seed: int = 0,
        disjoint: bool = True,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        self.n = _at_least(1, "n", n)
        self.batch_size = _at_least(1, "batch_size", batch_size)
        self.dev_batch_size = _optional_size(dev_batch_size)
        self.seed = _at_least(0, "seed", seed)
        self.disjoint = bool(disjoint)
        self.num_replicas, self.rank = _place(num_replicas, rank)
        dev_size = self.batch_size if self.dev_batch_size is None else self.dev_batch_size
        if self.n < self.num_replicas:
            raise ValueError(
                f"n = {self.n} samples cannot be shared by num_replicas = {self.num_replicas}, "
                "which need one each; use fewer replicas"
            )
        needed = (self.batch_size + dev_size) * self.num_replicas
        if self.disjoint and needed > self.n:
            times = f" on each of {self.num_replicas} replicas" if self.num_replicas > 1 else ""
            raise ValueError(
                f"batch_size = {self.batch_size} and dev_batch_size = {dev_size}{times} take "
                f"{needed} samples, but n = {self.n}: a dev batch cannot stay clear of the train "
                "batch it is paired with; lower batch_size or dev_batch_size, or set disjoint=False"
            )
        samples = np.arange(self.n)
        super().__init__(
            samples,
            samples,
            batch_size=self.batch_size,
            dev_batch_size=dev_size,
            match_sizes=self.dev_batch_size is None,
            distinct=self.disjoint,
            seed=self.seed,
            num_replicas=self.num_replicas,
            rank=self.rank,
        )

    def _config(self) -> dict[str, Any]:
        return {
            "sampler": type(self).__name__,
            "n": self.n,
            "batch_size": self.batch_size,
            "dev_batch_size": self.dev_batch_size,
            "seed": self.seed,
            "disjoint": self.disjoint,
            "num_replicas": self.num_replicas,
        }


class SplitSampler(_PairSampler):
    """Some samples are held out for the outer problem, the others train: the usual split.

    What bilevel methods did before reorder-and-reuse, and what BIAO compares it with (Table 3,
    figure 7). The seed fixes which samples are held out. Train batches go through the rest, a
    permutation each epoch; dev batches cycle through reshuffles of the held-out part.

    Args:
        n: number of samples.
        ratio: share of the samples that is held out, between 0 and 1; rounded to whole samples,
            at least one.
        batch_size: train samples per pair and replica. An epoch's last batch may be smaller.
        dev_batch_size: dev samples per pair and replica, at most what is held out. None: as many
            as train samples.
        seed: of the split and all orders, 0 or more. The same on every rank.
        num_replicas: number of processes that share each pair. Train samples that do not divide
            among them are left out, other ones each epoch.
        rank: which of these processes this is, from 0.

    Yields:
        Pairs (train_indices, dev_indices) of 1-D int64 tensors on the CPU.

    Raises:
        ValueError: a number is out of range, or a side of the split has fewer samples than there
            are replicas.
        TypeError: a number is of the wrong kind.

    Example:
        >>> from reweight.samplers import SplitSampler
        >>> sampler = SplitSampler(10, 0.2, 4)
        >>> [(len(train), len(dev)) for train, dev in sampler]
        [(4, 2), (4, 2)]
    """

    def __init__(
        self,
        n: int,
        ratio: float,
        batch_size: int,
        *,
        dev_batch_size: int | None = None,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        self.n = _at_least(1, "n", n)
        given: object = ratio
        if not isinstance(given, Real):
            raise TypeError(f"ratio must be a number between 0 and 1, got {ratio!r}")
        self.ratio = float(ratio)
        if not 0.0 < self.ratio < 1.0:
            raise ValueError(
                f"ratio = {ratio!r} is not between 0 and 1; it is the share of samples held out "
                "for dev batches, 0.05 for one in twenty"
            )
        self.batch_size = _at_least(1, "batch_size", batch_size)
        self.dev_batch_size = _optional_size(dev_batch_size)
        self.seed = _at_least(0, "seed", seed)
        self.num_replicas, self.rank = _place(num_replicas, rank)
        held_out = max(1, round(self.ratio * self.n))
        smaller = min(held_out, self.n - held_out)
        if smaller < self.num_replicas:
            raise ValueError(
                f"ratio = {self.ratio} of n = {self.n} holds out {held_out} and leaves "
                f"{self.n - held_out} to train on, but num_replicas = {self.num_replicas} needs "
                f"{self.num_replicas} or more on both sides; move ratio towards 0.5"
                + (" or use fewer replicas" if self.num_replicas > 1 else " or bring more samples")
            )
        order = np.random.default_rng([self.seed, 0, _SPLIT]).permutation(self.n)
        dev_size = self.batch_size if self.dev_batch_size is None else self.dev_batch_size
        super().__init__(
            order[held_out:],
            order[:held_out],
            batch_size=self.batch_size,
            dev_batch_size=min(dev_size, held_out // self.num_replicas),
            match_sizes=self.dev_batch_size is None,
            distinct=True,
            seed=self.seed,
            num_replicas=self.num_replicas,
            rank=self.rank,
        )

    def _config(self) -> dict[str, Any]:
        return {
            "sampler": type(self).__name__,
            "n": self.n,
            "ratio": self.ratio,
            "batch_size": self.batch_size,
            "dev_batch_size": self.dev_batch_size,
            "seed": self.seed,
            "num_replicas": self.num_replicas,
        }


class _Repair:
    """Exchanges dev samples between pairs until no pair holds a sample twice, train included.

    ``homes[c, v]`` is the pair in which copy c of sample v stands, -1 for nowhere: a row per pass
    of the dev stream, the last one for the train batches. A sample clashes where two of its
    homes are equal, and no exchange is made that would let a sample clash.
    """

    def __init__(
        self,
        samples: _Ints,
        pair: _Ints,
        copy: _Ints,
        num_copies: int,
        train_pair: npt.NDArray[np.int32],
        rng: np.random.Generator,
    ) -> None:
        self.samples, self.pair, self.copy, self.rng = samples, pair, copy, rng
        self.homes = np.full((num_copies + 1, len(train_pair)), -1, dtype=np.int32)
        self.homes[copy, samples] = pair
        self.homes[num_copies] = train_pair

    def run(self) -> None:
        """Repair ``samples`` in place."""
        clashing = self._clashing(np.arange(len(self.samples)))
        for attempt in range(_ROUNDS):
            if not len(clashing):
                return
            # Where the batches nearly fill the data, a clash's partners are other clashes, which
            # a draw from all positions hardly ever finds: so every second draw is among those.
            if attempt % 2:
                partner = self.rng.choice(clashing, len(clashing))
            else:
                partner = self.rng.integers(len(self.samples), size=len(clashing))
            self._exchange_allowed(clashing, partner)
            clashing = self._clashing(clashing)
        for pair in np.unique(self.pair[clashing]):
            self._settle(pair, clashing[self.pair[clashing] == pair])

    def _clashing(self, at: _Ints) -> _Ints:
        """Those of the positions ``at`` whose sample is in its pair twice."""
        homes = self.homes[:, self.samples[at]]
        clashing: _Ints = at[(homes == self.pair[at]).sum(axis=0) > 1]
        return clashing

    def _taken(self, samples: Any, pair: Any) -> npt.NDArray[np.bool_]:
        """Whether each sample already stands in the pair it would move to."""
        taken: npt.NDArray[np.bool_] = (self.homes[:, samples] == pair).any(axis=0)
        return taken

    def _exchange_allowed(self, at: _Ints, partner: _Ints) -> None:
        """Of the proposed exchanges, carry out those that hurt nobody, all at once."""
        allowed = ~self._taken(self.samples[partner], self.pair[at])
        allowed &= ~self._taken(self.samples[at], self.pair[partner])
        at, partner = at[allowed], partner[allowed]
        # Exchanges that move different samples cannot get in each other's way.
        moved = np.stack([self.samples[at], self.samples[partner]], axis=1)
        first = np.zeros(moved.size, dtype=bool)
        first[np.unique(moved, return_index=True)[1]] = True
        alone = first.reshape(moved.shape).all(axis=1)
        self._exchange(at[alone], partner[alone])

    def _exchange(self, at: Any, partner: Any) -> None:
        for content in (self.samples, self.copy):
            content[at], content[partner] = content[partner], content[at]
        for position in (at, partner):
            self.homes[self.copy[position], self.samples[position]] = self.pair[position]

    def _settle(self, pair: int, clashing: _Ints) -> None:
        """Free one pair of its clashes: by looking at every partner, else by replacement."""
        partners = np.flatnonzero(~self._taken(self.samples, pair) & (self.pair != pair))
        vacated = []
        for at in clashing:
            if not len(self._clashing(np.array([at]))):
                continue  # its twin has moved away
            sample = self.samples[at]
            allowed = partners[~self._taken(np.array([sample]), self.pair[partners][None])]
            if len(allowed):
                partner = self.rng.choice(allowed)
                partners = partners[self.samples[partners] != self.samples[partner]]
                self._exchange(at, partner)
            else:
                self.homes[self.copy[at], sample] = -1
                vacated.append(at)
        if vacated:
            free = np.flatnonzero(~(self.homes == pair).any(axis=0))
            self.samples[vacated] = self.rng.choice(free, len(vacated), replace=False)
            self.copy[vacated] = len(self.homes)
            row = np.full((1, self.homes.shape[1]), -1, dtype=np.int32)
            row[0, self.samples[vacated]] = pair
            self.homes = np.concatenate([self.homes, row])


def _at_least(minimum: int, name: str, value: Any) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {value!r} of type {type(value).__name__}")
    if number < minimum:
        raise ValueError(f"{name} = {number} must be {minimum} or more")
    return number


def _optional_size(dev_batch_size: int | None) -> int | None:
    return None if dev_batch_size is None else _at_least(1, "dev_batch_size", dev_batch_size)


def _place(num_replicas: int, rank: int) -> tuple[int, int]:
    num_replicas = _at_least(1, "num_replicas", num_replicas)
    rank = _at_least(0, "rank", rank)
    if rank >= num_replicas:
        raise ValueError(
            f"rank = {rank} does not exist among num_replicas = {num_replicas}; ranks count from 0"
        )
    return num_replicas, rank
