"""Batches gathered from tensors in memory, on the device the data lies on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cdr.data.schema import Behaviors, CrossDomainData, Histories, Items, windows


@dataclass(frozen=True)
class Candidates:
    """Items to be scored, one a row, with their category; long [B] (histories: [B, N])."""

    item: Tensor
    category: Tensor


@dataclass(frozen=True)
class History:
    """What a user did before, newest last; ``mask`` is True where an entry is real."""

    items: Candidates
    mask: Tensor


@dataclass(frozen=True)
class PairBatch:
    """Target behaviours, each with one source behaviour of the same user.

    Args:
        user: User of each pair, long [B].
        target: Target items.
        source: Source items; the pad item where the user has no source behaviour.
        target_label: float32 [B].
        source_label: float32 [B], 0 for a pad.
        has_source: bool [B].
        relevant: Whether the source behaviour is truly relevant, bool [B], from a generator.
        source_history: The user's source positives before the source behaviour, if asked for.
        target_history: The user's target positives up to it, likewise.
    """

    user: Tensor
    target: Candidates
    source: Candidates
    target_label: Tensor
    source_label: Tensor
    has_source: Tensor
    relevant: Tensor | None = None
    source_history: History | None = None
    target_history: History | None = None

    def __len__(self) -> int:
        return len(self.user)


class Batches:
    """Makes batches of one data set.

    Args:
        data: The data, on the device to train on.
        history_length: Behaviours of each domain that the weighter sees; 0 leaves histories out.
        seed: Of the random source behaviour that goes with a target row.
    """

    def __init__(self, data: CrossDomainData, history_length: int, seed: int) -> None:
        self.data = data
        self.history_length = history_length
        device = data.source_offsets.device
        self._generator = torch.Generator(device).manual_seed(seed)
        self._counts = data.source_offsets.diff()
        # One more item and category: the pad of users without source behaviours.
        category = data.source_items.category
        self._source_category = torch.cat(
            [category, category.new_tensor([data.source_items.num_categories])]
        )
        if history_length:
            self._source_history = _Windows(data.source_history, data.source_items, history_length)
            self._target_history = _Windows(data.target_history, data.target_items, history_length)

    def train_pairs(self, rows: Tensor) -> PairBatch:
        """Training rows, each with a random source behaviour of its user (BIAO's fetch(B_s))."""
        target = _rows(self.data.train, rows.to(self._counts.device))
        share = torch.rand(len(target), generator=self._generator, device=self._counts.device)
        return self.pairs(target, share)

    def pairs(self, target: Behaviors, share: Tensor) -> PairBatch:
        """Target rows with the source behaviour at ``share`` in [0, 1) of the user's own ones."""
        count = self._counts.index_select(0, target.user)
        # float32 can round share·count up to count. Users without a behaviour become pads.
        place = torch.minimum((share * count).long(), count - 1)
        first = self.data.source_offsets.index_select(0, target.user)
        return self._with_source(target, first + place, count > 0)

    def source_rows(self, rows: Tensor) -> PairBatch:
        """Source behaviours by their own row, beside a target that means nothing."""
        data = self.data
        nothing = torch.zeros_like(rows)
        target = Behaviors(data.source.user.index_select(0, rows), nothing, nothing.float())
        return self._with_source(target, rows, torch.ones_like(rows, dtype=torch.bool))

    def _with_source(self, target: Behaviors, rows: Tensor, has_source: Tensor) -> PairBatch:
        data, pad = self.data, ~has_source
        rows = rows.masked_fill(pad, 0)
        item = data.source.item.index_select(0, rows).masked_fill_(pad, data.source_items.num)
        histories: dict[str, History] = {}
        if self.history_length:
            histories = {
                "source_history": self._source_history.gather(rows, pad, exclude=item),
                "target_history": self._target_history.gather(rows, pad),
            }
        return PairBatch(
            user=target.user,
            target=Candidates(target.item, data.target_items.category.index_select(0, target.item)),
            source=Candidates(item, self._source_category.index_select(0, item)),
            target_label=target.label,
            source_label=data.source.label.index_select(0, rows).masked_fill_(pad, 0.0),
            has_source=has_source,
            relevant=None if data.relevant is None else data.relevant.index_select(0, rows),
            **histories,
        )


class _Windows:
    """The histories of one domain, with all that does not depend on the batch done once."""

    def __init__(self, histories: Histories, items: Items, length: int) -> None:
        self._histories, self._length = histories, length
        category = items.category.index_select(0, histories.items)
        self._item, self._category = windows(histories.items, length), windows(category, length)
        self._columns = torch.arange(length, device=category.device)
        self._pad_category = items.category[0]

    def gather(self, rows: Tensor, pad: Tensor, exclude: Tensor | None = None) -> History:
        """As :meth:`Histories.gather`, with categories; nothing is real where ``pad`` is True."""
        first, count = self._histories.recent(rows, self._length)
        mask = self._columns < count.masked_fill_(pad, 0).unsqueeze(1)
        item = self._item.index_select(0, first)
        if exclude is not None:
            mask &= item != exclude.unsqueeze(1)
        category = self._category.index_select(0, first)
        return History(
            Candidates(item.mul_(mask), torch.where(mask, category, self._pad_category)), mask
        )


def _rows(behaviors: Behaviors, index: Tensor) -> Behaviors:
    return Behaviors(
        behaviors.user.index_select(0, index),
        behaviors.item.index_select(0, index),
        behaviors.label.index_select(0, index),
    )
