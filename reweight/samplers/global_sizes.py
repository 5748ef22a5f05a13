"""Sizes of the batches that all ranks make together."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]


class GlobalSizes(NamedTuple):
    """How a number of samples is cut into batches that all ranks share.

    A batch has at least one sample for each rank, since the ranks make the same number of steps.

    Args:
        batch: train samples per pair, all ranks together.
        dev_batch: dev samples per pair, all ranks together; ``None``: as many as train samples.
        num_replicas: number of ranks.
    """

    batch: int
    dev_batch: int | None
    num_replicas: int

    @classmethod
    def of_ranks(
        cls, batch_size: int, dev_batch_size: int | None, num_replicas: int
    ) -> GlobalSizes:
        """The sizes of all ranks together, from those of one."""
        dev_batch = None if dev_batch_size is None else dev_batch_size * num_replicas
        return cls(batch_size * num_replicas, dev_batch, num_replicas)

    def train_edges(self, count: int) -> Ints:
        """Where the batches of ``count`` samples begin and end: [batches + 1].

        All batches are full but the last. If the last would have fewer samples than there are
        ranks, it takes some of the batch before. Samples are left out only where this cannot help:
        the remainder where a full batch has one sample per rank, and fewer samples than ranks.
        """
        if self.batch == self.num_replicas:
            count -= count % self.num_replicas
        edges = np.minimum(np.arange(-(-count // self.batch) + 1) * self.batch, count)
        if len(edges) > 1 and edges[-1] - edges[-2] < self.num_replicas:
            if len(edges) == 2:
                return edges[:1]
            edges[-2] = count - self.num_replicas
        return edges

    def dev_edges(self, train_edges: Ints, most: int | None) -> Ints:
        """Where the dev batches begin and end: [batches + 1].

        Args:
            train_edges: what :meth:`train_edges` returned.
            most: largest possible size of a dev batch; ``None``: no limit.
        """
        sizes = np.diff(train_edges)
        if self.dev_batch is not None:
            sizes[:] = self.dev_batch
        if most is not None:
            sizes = np.minimum(sizes, most)
        return np.concatenate([[0], np.cumsum(sizes)])
