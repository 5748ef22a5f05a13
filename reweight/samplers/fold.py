"""One fold of several held out, for cross-fitting."""

from __future__ import annotations

from typing import Any

import numpy as np

from reweight.samplers._arguments import at_least
from reweight.samplers.pairs import PairSampler
from reweight.samplers.segment import SPLIT


class FoldSampler(PairSampler):
    """One fold of the samples is held out for the outer problem; the others train.

    For cross-fitting: as many models as there are folds train side by side, each without its own
    fold, and one weighter learns from all of them. Dev batches hold samples that the model was not
    trained on, and yet every sample serves both problems, in different models. Dev samples that the
    model has been trained on may say the opposite of what held-out ones say.

    The seed fixes the folds, whose sizes differ by one sample at most. Train batches are a
    permutation of the other folds each epoch; dev batches cycle through permutations of the fold.
    Ranks share the pairs as those of :class:`ReorderReuseSampler` do.

    Args:
        n: number of samples.
        folds: number of folds, at least 2. The same for all models.
        fold: which of them is held out, from 0.
        batch_size: train samples per pair and rank. An epoch's last batches may be smaller.
        dev_batch_size: dev samples per pair and rank; all ranks together, at most what is held
            out. None: as many as train samples.
        seed: of the folds and all orders, 0 or more. The same for all models and on every rank.
        num_replicas: number of processes that share each pair.
        rank: which of these processes this is, from 0.

    Yields:
        Pairs (train_indices, dev_indices) of 1-D int64 tensors on the CPU. :class:`PairLoader`
        makes batches of them.

    Raises:
        ValueError: a number is out of range, or a fold has fewer samples than there are ranks.
        TypeError: a number is of the wrong kind.

    Example:
        >>> from reweight.samplers import FoldSampler
        >>> samplers = [FoldSampler(9, 3, fold, batch_size=6) for fold in range(3)]
        >>> held_out = []
        >>> for pairs in zip(*samplers):          # one outer step
        ...     for train, dev in pairs:          # of each model: rw.outer_backward(...)
        ...         held_out += dev.tolist()
        >>> sorted(held_out)
        [0, 1, 2, 3, 4, 5, 6, 7, 8]
    """

    def __init__(
        self,
        n: int,
        folds: int,
        fold: int,
        batch_size: int,
        *,
        dev_batch_size: int | None = None,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        super().__init__(n, batch_size, dev_batch_size, seed, num_replicas, rank)
        self.folds, self.fold = at_least(2, "folds", folds), at_least(0, "fold", fold)
        if self.fold >= self.folds:
            raise ValueError(
                f"fold = {fold} of folds = {folds}: folds are counted from 0, so the last one is "
                f"{folds - 1}"
            )
        if self.n // self.folds < self.num_replicas:
            raise ValueError(
                f"n = {self.n} samples in folds = {self.folds} leave {self.n // self.folds} in the "
                f"smallest fold, but num_replicas = {self.num_replicas} needs {self.num_replicas} "
                "or more in each; take fewer folds"
                + (" or fewer replicas" if self.num_replicas > 1 else "")
            )
        order = np.random.default_rng([self.seed, 0, SPLIT]).permutation(self.n)
        parts = np.array_split(order, self.folds)
        held_out = parts.pop(self.fold)
        self._arrange(np.concatenate(parts), held_out, distinct=True)

    def _choice(self) -> dict[str, Any]:
        return {"folds": self.folds, "fold": self.fold}
