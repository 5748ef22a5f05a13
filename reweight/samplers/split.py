"""The held-out split."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np

from reweight.samplers.pairs import PairSampler
from reweight.samplers.segment import SPLIT


class SplitSampler(PairSampler):
    """Some samples are held out for the outer problem; the others train.

    BIAO compares reorder-and-reuse with this split (Table 3, figure 7). The seed fixes which
    samples are held out. Train batches are a permutation of the rest each epoch; dev batches cycle
    through permutations of the held-out samples. Ranks share the pairs as those of
    :class:`ReorderReuseSampler` do.

    Args:
        n: number of samples.
        ratio: share of the samples that is held out, between 0 and 1; rounded to whole samples,
            at least one.
        batch_size: train samples per pair and rank. An epoch's last batches may be smaller.
        dev_batch_size: dev samples per pair and rank; all ranks together, at most what is held
            out. None: as many as train samples.
        seed: of the split and all orders, 0 or more. The same on every rank.
        num_replicas: number of processes that share each pair.
        rank: which of these processes this is, from 0.

    Yields:
        Pairs (train_indices, dev_indices) of 1-D int64 tensors on the CPU. :class:`PairLoader`
        makes batches of them.

    Raises:
        ValueError: a number is out of range, or a side of the split has fewer samples than there
            are ranks.
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
        super().__init__(n, batch_size, dev_batch_size, seed, num_replicas, rank)
        given: object = ratio
        if not isinstance(given, Real):
            raise TypeError(f"ratio must be a number between 0 and 1, got {ratio!r}")
        self.ratio = float(ratio)
        if not 0.0 < self.ratio < 1.0:
            raise ValueError(
                f"ratio = {ratio!r} is not between 0 and 1; it is the share of samples held out "
                "for dev batches, 0.05 for one in twenty"
            )
        held_out = max(1, round(self.ratio * self.n))
        if min(held_out, self.n - held_out) < self.num_replicas:
            raise ValueError(
                f"ratio = {self.ratio} of n = {self.n} holds out {held_out} and leaves "
                f"{self.n - held_out} to train on, but num_replicas = {self.num_replicas} needs "
                f"{self.num_replicas} or more on both sides; move ratio towards 0.5"
                + (" or use fewer replicas" if self.num_replicas > 1 else " or bring more samples")
            )
        order = np.random.default_rng([self.seed, 0, SPLIT]).permutation(self.n)
        self._arrange(order[held_out:], order[:held_out], distinct=True)

    def _choice(self) -> dict[str, Any]:
        return {"ratio": self.ratio}
