"""Batches gathered from tensors in memory, on the device the data lies on."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from cdr.common import ALONE, Processes
from cdr.data.schema import Behaviors, CrossDomainData, Items, windows


@dataclass(frozen=True)
class Candidates:
    """Items to be scored, one a row, with their category; long [B] (histories: [B, N])."""

    item: Tensor
    category: Tensor


@dataclass(frozen=True)
class History:
    """A user's earlier positives, newest last; ``mask`` [B, N] is True where an entry is real."""

    items: Candidates
    mask: Tensor


@dataclass(frozen=True)
class FlatHistories:
    """The histories of B rows one after another, without pads.

    Args:
        items: The positives of all rows, long [P], those of a row newest last.
        start: Where those of each row begin, long [B].
        length: How many they are, long [B].
    """

    items: Candidates
    start: Tensor
    length: Tensor


@dataclass(frozen=True)
class Past:
    """A user's positives in each domain before a candidate; None where the model reads none."""

    source: History | None
    target: History | None


@dataclass(frozen=True)
class PairBatch:
    """Target behaviours, each with one source behaviour.

    Args:
        user: User of each target behaviour, long [B].
        target: Target items.
        source: Source items; the pad item where the user has no source behaviour.
        target_label: float32 [B].
        source_label: float32 [B], 0 for a pad.
        source_user: User of each source behaviour: the same, unless they are drawn from all.
        source_row: Row of the source behaviour in the data, long [B]; 0 for a pad.
        has_source: bool [B].
        source_history: The user's source positives before the source behaviour, for a weighter.
        target_history: The user's target positives up to it, likewise; both may be flat.
        target_past: What the model reads beside the target item.
        source_past: What the model reads beside the source item.
        source_facts: What the weighter sees of the source behaviour beside its item, float32
            [B, F]; 0 for a pad. None: nothing.
        weight: Weight of each source loss, float32 [B], where it is made before the step.
    """

    user: Tensor
    target: Candidates
    source: Candidates
    target_label: Tensor
    source_label: Tensor
    source_user: Tensor
    source_row: Tensor
    has_source: Tensor
    source_history: History | FlatHistories | None = None
    target_history: History | FlatHistories | None = None
    target_past: Past | None = None
    source_past: Past | None = None
    source_facts: Tensor | None = None
    weight: Tensor | None = None

    def __len__(self) -> int:
        return len(self.user)


@dataclass(frozen=True)
class Windows:
    """How many of a user's positives (source, target) a model reads beside a candidate."""

    target: tuple[int, int] = (0, 0)
    source: tuple[int, int] = (0, 0)


class Batches:
    """Makes batches of one data set.

    Args:
        data: The data, on the device to train on.
        history_length: Behaviours of each domain that the weighter sees; 0 leaves histories out.
        seed: Of the random source behaviour that goes with a target row.
        windows: What the model reads.
        paired: Whether a training row goes with a source behaviour of its own user, or with one
            drawn from all.
        processes: Those that train together. All draw for the whole batch, and make of it the rows
            of their own share, so that the numbers drawn do not depend on how many they are.
        facts: What the weighter sees of each source behaviour beside its item,
            [len(data.source), F]; None: nothing.
    """

    def __init__(
        self,
        data: CrossDomainData,
        history_length: int,
        seed: int,
        windows: Windows = Windows(),
        paired: bool = True,
        processes: Processes = ALONE,
        facts: Tensor | None = None,
    ) -> None:
        self.data = data
        self._facts = facts
        self.processes = processes
        self.history_length = history_length
        self._paired = paired
        device = data.source_offsets.device
        self._generator = torch.Generator(device).manual_seed(seed)
        self._counts = data.source_offsets.diff()
        # One more item and category: the pad of users without source behaviours.
        category = data.source_items.category
        self._source_category = torch.cat(
            [category, category.new_tensor([data.source_items.num_categories])]
        )
        self._source_spans, self._target_spans = (
            torch.stack([histories.start, histories.end], 1)
            for histories in (data.source_history, data.target_history)
        )
        self._seen = self._readers((history_length, history_length))
        self._source_past, self._target_past = map(self._readers, (windows.source, windows.target))

    def state_dict(self) -> dict[str, Tensor]:
        """Where the draws of source behaviours are."""
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on drawing where the state was taken."""
        self._generator.set_state(state["generator"])

    def unseen(self) -> Batches:
        """The same batches, of the same draws, without what a weighter sees of a behaviour."""
        same = copy.copy(self)
        same._seen, same._facts = (None, None), None
        return same

    def train_pairs(self, *rows: Tensor, flat: bool = False) -> PairBatch:
        """Training rows, each with a random source behaviour (BIAO's fetch(B_s)).

        Args:
            rows: Long [B], of all processes; the rows of several batches become one, with the
                source behaviours that a call for each of them would draw.
            flat: Whether the weighter's histories are flat.

        Returns:
            The share of this process, of each of the batches.
        """
        device, own = self._counts.device, self.processes.share
        target = self.data.train.select(torch.cat([own(part) for part in rows]).to(device))
        # A draw of two batches at once would give the second one other numbers.
        draws = [torch.rand(len(part), generator=self._generator, device=device) for part in rows]
        share = torch.cat([own(part) for part in draws])
        if self._paired:
            return self.pairs(target, share, flat=flat)
        num = len(self.data.source)
        row = (share * num).long().clamp_(max=num - 1)
        has_source = torch.ones_like(row, dtype=torch.bool)
        return self._with_source(target, row, has_source, self.data.source.user[row], flat)

    def pairs(self, target: Behaviors, share: Tensor, *, flat: bool = False) -> PairBatch:
        """Target rows with the source behaviour at ``share`` in [0, 1) of the user's own ones."""
        count = self._counts.index_select(0, target.user)
        # float32 can round share·count up to count. Users without a behaviour become pads.
        place = torch.minimum((share * count).long(), count - 1)
        first = self.data.source_offsets.index_select(0, target.user)
        return self._with_source(target, first + place, count > 0, target.user, flat)

    def source_rows(
        self, rows: Tensor, *, flat: bool = False, beside: Behaviors | None = None
    ) -> PairBatch:
        """Source behaviours by their own row.

        Args:
            rows: Long [B].
            flat: Whether the weighter's histories are flat.
            beside: A target behaviour for each, [B]; None: a placeholder.
        """
        user = self.data.source.user.index_select(0, rows)
        if beside is None:
            nothing = torch.zeros_like(rows)
            span = torch.stack([nothing, nothing], 1)
            beside = Behaviors(user, nothing, nothing.float(), span, span)
        target = beside
        has_source = torch.ones_like(rows, dtype=torch.bool)
        return self._with_source(target, rows, has_source, user, flat)

    def _readers(self, lengths: tuple[int, int]) -> tuple[_Reader | None, _Reader | None]:
        data, (source, target) = self.data, lengths
        return (
            _Reader(data.source_history.items, data.source_items, source) if source else None,
            _Reader(data.target_history.items, data.target_items, target) if target else None,
        )

    def _with_source(
        self, target: Behaviors, rows: Tensor, has_source: Tensor, user: Tensor, flat: bool
    ) -> PairBatch:
        data, pad = self.data, ~has_source
        rows = rows.masked_fill(pad, 0)
        item = data.source.item.index_select(0, rows).masked_fill_(pad, data.source_items.num)
        spans: tuple[Tensor | None, Tensor | None] = (None, None)
        if any((*self._seen, *self._source_past)):
            # A slice from 0 to 0: a pad has no history.
            spans = tuple(  # type: ignore[assignment]
                spans.index_select(0, rows).masked_fill_(pad.unsqueeze(1), 0)
                for spans in (self._source_spans, self._target_spans)
            )
        seen: list[History | FlatHistories | None] = [
            None
            if reader is None or span is None
            else (reader.flat if flat else reader.gather)(span, exclude)
            for reader, span, exclude in zip(self._seen, spans, (item, None), strict=True)
        ]
        return PairBatch(
            user=target.user,
            target=Candidates(target.item, data.target_items.category.index_select(0, target.item)),
            source=Candidates(item, self._source_category.index_select(0, item)),
            target_label=target.label,
            source_label=data.source.label.index_select(0, rows).masked_fill_(pad, 0.0),
            source_user=user,
            source_row=rows,
            has_source=has_source,
            source_history=seen[0],
            target_history=seen[1],
            source_past=_past(self._source_past, spans, (item, None)),
            target_past=_past(
                self._target_past, (target.source_past, target.target_past), (None, target.item)
            ),
            source_facts=None
            if self._facts is None
            else self._facts.index_select(0, rows).masked_fill_(pad.unsqueeze(1), 0.0),
        )


def _past(
    readers: tuple[_Reader | None, _Reader | None],
    spans: tuple[Tensor | None, Tensor | None],
    exclude: tuple[Tensor | None, Tensor | None],
) -> Past | None:
    """The entries of the slices in both domains, without the candidate itself."""
    if not any(readers):
        return None
    return Past(
        *(
            None if reader is None or span is None else reader.gather(span, item)
            for reader, span, item in zip(readers, spans, exclude, strict=True)
        )
    )


class _Reader:
    """Gathers histories of one length in one domain."""

    def __init__(self, positives: Tensor, items: Items, length: int) -> None:
        self._length, self._positives, self._items = length, positives, items
        category = items.category.index_select(0, positives)
        self._item, self._category = windows(positives, length), windows(category, length)
        self._columns = torch.arange(length, device=category.device)
        self._pad_category = items.category[0]

    def gather(self, spans: Tensor, exclude: Tensor | None = None) -> History:
        """The most recent of each slice [B, 2] of the positives, without the item excluded."""
        start, end = spans.unbind(1)
        first = torch.maximum(start, end - self._length)
        mask = self._columns < (end - first).unsqueeze(1)
        item = self._item.index_select(0, first)
        if exclude is not None:
            mask &= item != exclude.unsqueeze(1)
        category = self._category.index_select(0, first)
        return History(
            Candidates(item.mul_(mask), torch.where(mask, category, self._pad_category)), mask
        )

    def flat(self, spans: Tensor, exclude: Tensor | None = None) -> FlatHistories:
        """The same without pads."""
        start, end = spans.unbind(1)
        first = torch.maximum(start, end - self._length)
        row = torch.repeat_interleave(end - first)
        begins = (end - first).cumsum(0) - (end - first)
        place = torch.arange(len(row), device=row.device) + (first - begins).index_select(0, row)
        item = self._positives.index_select(0, place)
        if exclude is not None:
            kept = item != exclude.index_select(0, row)
            item, row = item[kept], row[kept]
        length = row.bincount(minlength=len(spans))
        category = self._items.category.index_select(0, item)
        return FlatHistories(Candidates(item, category), length.cumsum(0) - length, length)
