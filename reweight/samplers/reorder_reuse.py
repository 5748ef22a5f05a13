"""Reorder-and-reuse: every sample serves the inner and the outer problem (BIAO §3.4)."""

from __future__ import annotations

from typing import Any

import numpy as np

from reweight.samplers.pairs import PairSampler


class ReorderReuseSampler(PairSampler):
    """Every sample serves both problems: the data in one order for train, in another for dev.

    The reorder-and-reuse strategy of BIAO (§3.4, figure 7; compared with splits in Table 3).
    An epoch's train batches are a permutation of all samples. The dev batches come from an
    independent, endless reshuffle of the same samples, so that all serve the outer problem
    equally often; with ``dev_batch_size=None`` each epoch's dev batches are a permutation too.

    A dev batch is useful only if it shares no samples with the train batch of its pair.
    ``disjoint=True`` makes sure of that: where the two share a sample, the dev sample is swapped
    with a sample of another dev batch, chosen at random. Only where the sizes allow no swap is it
    replaced by an allowed sample, at random.

    Each ``iter()`` is one epoch; the first is epoch 0. An epoch that was left early is not
    continued, except from a state.

    Under data parallelism every rank builds the same pairs and takes its share. The shares of all
    ranks, one after the other, are the pairs of one process whose batches are ``num_replicas``
    times as large; so the dev batch of each rank is disjoint from the train batches of all ranks.
    The ranks make the same number of steps, and their shares differ by one sample at most. If the
    epoch's last batch would have fewer samples than there are ranks, it takes some of the batch
    before. With ``batch_size=1`` there is none to take: the samples that do not divide among the
    ranks are left out, other ones each epoch. A state can be loaded with another number of ranks:
    see :meth:`load_state_dict`.

    Args:
        n: number of samples.
        batch_size: train samples per pair and rank. An epoch's last batches may be smaller.
        dev_batch_size: dev samples per pair and rank. None: as many as train samples, in the
            last pairs too.
        seed: of all orders, 0 or more. The same on every rank.
        disjoint: keep the two batches of a pair free of common samples, and dev batches free of
            repeated ones.
        num_replicas: number of processes that share each pair.
        rank: which of these processes this is, from 0.

    Yields:
        Pairs (train_indices, dev_indices) of 1-D int64 tensors on the CPU. :class:`PairLoader`
        makes batches of them.

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

        Two ranks share the pairs of one process:

        >>> one = ReorderReuseSampler(10, 4)
        >>> ranks = [ReorderReuseSampler(10, 2, num_replicas=2, rank=rank) for rank in (0, 1)]
        >>> for (train, _), (first, _), (second, _) in zip(one, *ranks):
        ...     print(train.tolist(), first.tolist(), second.tolist())
        [4, 6, 2, 7] [4, 6] [2, 7]
        [3, 5, 9, 0] [3, 5] [9, 0]
        [8, 1] [8] [1]
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
        super().__init__(n, batch_size, dev_batch_size, seed, num_replicas, rank)
        self.disjoint = bool(disjoint)
        if self.n < self.num_replicas:
            raise ValueError(
                f"n = {self.n} samples cannot be shared by num_replicas = {self.num_replicas}, "
                "which need one each; use fewer replicas"
            )
        dev_size = self.batch_size if self.dev_batch_size is None else self.dev_batch_size
        needed = (self.batch_size + dev_size) * self.num_replicas
        if self.disjoint and needed > self.n:
            times = f" on each of {self.num_replicas} replicas" if self.num_replicas > 1 else ""
            raise ValueError(
                f"batch_size = {self.batch_size} and dev_batch_size = {dev_size}{times} take "
                f"{needed} samples, but n = {self.n}: a dev batch cannot be disjoint from the "
                "train batch of its pair; lower batch_size or dev_batch_size, or set disjoint=False"
            )
        samples = np.arange(self.n)
        self._arrange(samples, samples, distinct=self.disjoint)

    def _choice(self) -> dict[str, Any]:
        return {"disjoint": self.disjoint}
