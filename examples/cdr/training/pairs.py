"""Batches of training rows for the inner problem, each with one for the outer problem."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from cdr.training.options import HOLDS_OUT, OuterOptions
from reweight import FoldSampler, ReorderReuseSampler, SplitSampler

PairSampler: TypeAlias = ReorderReuseSampler | SplitSampler | FoldSampler


class Fold(NamedTuple):
    """The rows that one of several models leaves out: part `number`, from 0, `of` so many."""

    number: int
    of: int

    def size(self, n: int) -> int:
        """How many of n rows it holds: folds differ by one at most, the first ones being larger."""
        return len(range(self.number, n, self.of))

    def rows(self, n: int, seed: int) -> Tensor:
        """Those rows of n, ascending, long."""
        # A batch of all that are left.
        num_left = n - self.size(n)
        ((left, _),) = FoldSampler(n, self.of, self.number, num_left, dev_batch_size=1, seed=seed)
        held_out = torch.ones(n, dtype=torch.bool)
        held_out[left] = False
        return held_out.nonzero().squeeze(1)


def pair_sampler(
    n: int, batch_size: int, seed: int, options: OuterOptions | None, fold: Fold | None = None
) -> PairSampler:
    """Batches of training rows for the inner problem, each with one for the outer problem.

    Args:
        n: training rows.
        batch_size: of the inner problem, at most; less where there are few rows.
        seed: of the order, and of what is held out.
        options: of the outer problem, which may have rows held out; None: there is none.
        fold: Which rows are held out instead.

    Raises:
        ValueError: There is a single training row.
    """
    if n < 2:
        raise ValueError(
            "the data have one target behaviour to train on, which cannot serve both the inner and "
            "the outer problem; take a larger target domain, or more users"
        )
    if fold is not None and options is not None:
        held_out = fold.size(n)
        return FoldSampler(
            n,
            fold.of,
            fold.number,
            min(batch_size, n - held_out),
            dev_batch_size=min(options.batch_size, held_out),
            seed=seed,
        )
    if options is not None and options.dev in HOLDS_OUT:
        held_out = max(1, round(options.split * n))
        return SplitSampler(
            n,
            options.split,
            min(batch_size, n - held_out),
            dev_batch_size=min(options.batch_size, held_out),
            seed=seed,
        )
    return ReorderReuseSampler(n, min(batch_size, n // 2), seed=seed)
