"""How much of the samples of all processes one process has.

The reference is one process with all samples in one batch. Its weighted losses are averaged over
the batch; what the user has averaged already, the fixed part and the outer loss, is averaged over
the processes, by the rows of their batches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sized
from dataclasses import dataclass, replace
from typing import Any

from reweight._problem.micro_batches import MicroBatches
from reweight._problem.notices import Notices
from reweight._tensors import shared, tensors_in


@dataclass(frozen=True)
class Shares:
    """The shares of this process.

    Attributes:
        fixed: of the rows of the train batch.
        outer: of the rows of the dev batch.
        total: the number of weighted losses of all processes; ``None``: those of this one.
    """

    fixed: float = 1.0
    outer: float = 1.0
    total: int | None = None

    def with_losses(self, count: int) -> Shares:
        """The shares, when the number of weighted losses of this process is known."""
        group = shared()
        if group is None:
            return self
        return replace(self, total=int(sum(each[0] for each in group.numbers(float(count)))))


WHOLE = Shares()


def shares_of(batch: Any, dev_batch: Any, notices: Notices) -> Shares:
    """The shares that the batches show."""
    group = shared()
    if group is None:
        return WHOLE
    (first, all_rows), (dev_first, dev_all_rows) = rows_of(batch), rows_of(dev_batch)
    of_ranks = group.numbers(first, all_rows, dev_first, dev_all_rows)
    fixed, by_all, outer, outer_by_all = (
        own / (sum(each) or 1.0)
        for own, each in zip(of_ranks[group.rank], zip(*of_ranks, strict=True), strict=True)
    )
    if abs(fixed - by_all) + abs(outer - outer_by_all) > 1e-12:  # shares are at most 1
        notices.warn(
            "shares",
            "the processes have batches of unequal sizes, and the tensors of a batch have "
            "different numbers of rows, so it can't be told how many samples the fixed part of the "
            "losses and the outer loss are averages of: the rows of each batch's first tensor are "
            "counted. Give all processes batches of one size (drop_last=True), or let the first "
            "tensor be one with a row for every sample of that average.",
        )
    return Shares(fixed, outer)


def rows_of(batch: Any) -> tuple[int, int]:
    """The rows of the first tensor of a batch, and of all its tensors together."""
    if isinstance(batch, MicroBatches):
        of_each = [rows_of(each) for each in batch.batches]
        return sum(first for first, _ in of_each), sum(rows for _, rows in of_each)
    rows = [x.size(0) for x in tensors_in(batch) if x.ndim] or _lengths(batch) or [1]
    return rows[0], sum(rows)


def _lengths(batch: Any) -> list[int]:
    """The lengths of the arrays and lists of a batch without tensors, or of the batch itself."""
    columns = [batch]
    if isinstance(batch, Mapping):
        columns = list(batch.values())
    elif isinstance(batch, tuple):
        columns = list(batch)
    return [
        len(column)
        for column in columns
        # An array of no dimensions has no length.
        if isinstance(column, Sized)
        and not isinstance(column, str)
        and getattr(column, "ndim", 1) > 0
    ]
