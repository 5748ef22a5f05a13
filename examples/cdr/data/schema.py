"""A scenario of two domains in memory, from the rows of a file to the tensors of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cdr.data.accounts import Account
from cdr.data.coded import Coded
from cdr.data.protocol import Protocol

OTHERS = "others"  # the category of an item whose category is unknown


@dataclass(frozen=True, eq=False)
class Interactions:
    """One domain as read: parallel arrays, one entry per behaviour, in file order.

    Ids and categories may be :class:`cdr.data.coded.Coded` columns.

    Args:
        user: User ids, [n], strings or integers.
        item: Item ids, [n], strings or integers.
        label: Whether the behaviour is positive (rating > 3), bool [n].
        time: Times, float64 [n], NaN where unknown; None if the domain has no times. Seconds since
            1970, or any unit that both domains share; see :func:`cdr.data.clock.on_one_clock`.
        order: Position in the chronology of the user, int64 [n]; it breaks ties in time and
            stands in for times that are missing. None: the file order does.
        category: Category of each row's item, strings [n]; None: every item is "others".
        relevant: Whether the behaviour is truly worth learning from, bool [n]; only a generator
            knows.

    Raises:
        ValueError: If an array's length differs from that of `user`.

    Example:
        >>> import numpy as np
        >>> rows = Interactions(np.array(["ann", "bob"]), np.array([7, 7]), np.array([True, False]))
        >>> len(rows), rows.select(np.array([True, False])).user.tolist()
        (2, ['ann'])
    """

    user: np.ndarray | Coded
    item: np.ndarray | Coded
    label: np.ndarray
    time: np.ndarray | None = None
    order: np.ndarray | None = None
    category: np.ndarray | Coded | None = None
    relevant: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name, column in vars(self).items():
            if column is not None and column.shape != self.user.shape:
                raise ValueError(
                    f"Interactions.{name} has shape {column.shape}, but user has shape "
                    f"{self.user.shape}; give one entry per behaviour in every column."
                )

    def __len__(self) -> int:
        return len(self.user)

    def select(self, rows: np.ndarray) -> Interactions:
        """The rows picked by a mask or by indices, in that order."""
        columns: dict[str, Any] = {
            name: None if column is None else column[rows] for name, column in vars(self).items()
        }
        return Interactions(**columns)


@dataclass(frozen=True, eq=False)
class Items:
    """The items of one domain; item i of the tensors is `ids[i]` of the file.

    Args:
        ids: Original item ids, [num], sorted.
        category: Category of each item, long [num].
        category_names: Name of each category, sorted.
    """

    ids: np.ndarray
    category: Tensor
    category_names: tuple[str, ...]

    @property
    def num(self) -> int:
        """Number of items."""
        return len(self.ids)

    @property
    def num_categories(self) -> int:
        """Number of categories."""
        return len(self.category_names)


@dataclass(frozen=True, eq=False)
class Behaviors:
    """Behaviours ready for training or evaluation.

    Args:
        user: User index, long [n].
        item: Item index within the domain, long [n].
        label: 1 for a positive behaviour, 0 for a negative one, float32 [n].
        source_past: For target behaviours, the slice of `source_history.items` that the user had
            liked by then, long [n, 2]: first, one past the last. None for source behaviours,
            which have the histories themselves.
        target_past: The same of `target_history.items`.
    """

    user: Tensor
    item: Tensor
    label: Tensor
    source_past: Tensor | None = None
    target_past: Tensor | None = None

    def __len__(self) -> int:
        return len(self.user)

    def select(self, rows: Tensor) -> Behaviors:
        """The rows of these indices, long [m], in that order."""
        columns: dict[str, Any] = {
            name: None if column is None else column.index_select(0, rows)
            for name, column in vars(self).items()
        }
        return Behaviors(**columns)


@dataclass(frozen=True, eq=False)
class Histories:
    """For each source behaviour, the positive behaviours of its user that came before it.

    The positives of all users lie in one flat list, sorted by user and time; a row's history is
    the slice `start[row]:end[row]` of it, so that memory does not grow with history length.

    Args:
        items: Item index of each positive, long [P].
        start: First positive of the row's user, long [rows].
        end: One past the last positive the row may see, long [rows].
        origin: The behaviour each positive comes from, long [P]: a row of
            `CrossDomainData.source` for source histories, of `.train` for target histories.
            Read by :func:`cdr.data.leaks.audit` only.

    Example:
        >>> import torch
        >>> flat = torch.tensor([4, 5, 6])
        >>> histories = Histories(flat, torch.tensor([0, 0]), torch.tensor([1, 3]), flat)
        >>> items, mask = histories.gather(torch.tensor([0, 1]), 2)
        >>> items.tolist(), mask.tolist()
        ([[4, 0], [5, 6]], [[True, False], [True, True]])
    """

    items: Tensor
    start: Tensor
    end: Tensor
    origin: Tensor

    def gather(
        self, rows: Tensor, length: int, exclude: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The most recent `length` positives of each row, oldest first, left-aligned.

        Args:
            rows: Source rows, long [B].
            length: Number of columns; shorter histories are filled up on the right.
            exclude: An item per row that its history must not show, long [B]; its entries are
                masked where they stand. Use the candidate with source histories: the user may
                have met the same item before. Items of the other domain mean nothing here.

        Returns:
            Item indices, long [B, length], and the mask, bool [B, length], True where the entry
            is real. Masked entries hold 0, which is a real item's index too: use the mask.
        """
        end = self.end.index_select(0, rows)
        first = torch.maximum(self.start.index_select(0, rows), end - length)
        items = windows(self.items, length).index_select(0, first)
        mask = torch.arange(length, device=first.device) < (end - first).unsqueeze(1)
        if exclude is not None:
            mask &= items != exclude.unsqueeze(1)
        return items.mul_(mask), mask


def windows(values: Tensor, length: int) -> Tensor:
    """All windows of `length` neighbours in a list [P], zeros past its end, [P + 1, length].

    They are views: all together take the memory of the list.
    """
    return torch.cat([values, values.new_zeros(length)]).unfold(0, length, 1)


@dataclass(frozen=True, eq=False)
class Times:
    """Times of the behaviours (float64, NaN where unknown), kept for the leak audit only.

    They stay on the CPU: neither training nor evaluation reads them.
    """

    source: Tensor
    train: Tensor
    valid: Tensor
    test: Tensor


@dataclass(frozen=True, eq=False)
class CrossDomainData:
    """A source and a target domain with common users, split by time.

    Args:
        name: Name of the scenario, for tables.
        user_ids: Original id of each user, [num_users], sorted.
        source_items: Items of the source domain.
        target_items: Items of the target domain.
        source: Source behaviours to train on, after the time cut, sorted by user, then time.
        source_offsets: The source rows of user u are `source_offsets[u]:source_offsets[u + 1]`,
            long [num_users + 1].
        train: Target behaviours to train on, sorted by user, then time.
        valid: The target behaviour before the tested ones, of each user who has two or more.
        test: The last target behaviours of each user, one or more, sorted by user, then time.
        extra_test: Further target behaviours that cut the noise of a test, from a generator.
        source_history: By source row: the user's strictly earlier source positives.
        target_history: By source row: the user's *training* target positives no later than it.
        relevant: Whether a source row is truly relevant, bool [len(source)], from a generator or
            after a known harm (:mod:`cdr.data.harm`).
        times: What the leak audit needs.
        source_cut: "time" if source behaviours were cut at the target's validation time, "all"
            if every source behaviour was kept.
        protocol: Which target behaviours are trained on and tested on.
        statistics: Counts by name; see :func:`cdr.data.split.build`.
        notes: Sentences that a table of results on this data must print.
        repaired: Of rows that were not taken as they stand in the log: how many, by what was done.
            Trainings are kept under it too.
        reader_notes: Those of the notes that say how files were read.
        account: What became of the rows of the files; None of data that are read from none.
    """

    name: str
    user_ids: np.ndarray
    source_items: Items
    target_items: Items
    source: Behaviors
    source_offsets: Tensor
    train: Behaviors
    valid: Behaviors
    test: Behaviors
    extra_test: Behaviors | None
    source_history: Histories
    target_history: Histories
    relevant: Tensor | None
    times: Times
    source_cut: str
    protocol: Protocol
    statistics: dict[str, int]
    notes: tuple[str, ...]
    repaired: Mapping[str, int] = field(default_factory=dict)
    reader_notes: tuple[str, ...] = ()
    account: Account | None = None

    @property
    def num_users(self) -> int:
        """Number of users, all of them in both domains."""
        return len(self.user_ids)

    def to(self, device: torch.device | str) -> CrossDomainData:
        """The same data with its tensors on `device` (`times` excepted)."""
        moved: CrossDomainData = _move(self, device)
        return moved


def _move(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, (Items, Behaviors, Histories, CrossDomainData)):
        return replace(value, **{k: _move(v, device) for k, v in vars(value).items()})
    return value
