"""Batches gathered from tensors in memory, on the device the data lies on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cdr.data.schema import Behaviors, CrossDomainData


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

    def train_pairs(self, rows: Tensor) -> PairBatch:
        """Training rows, each with a random source behaviour of its user (BIAO's fetch(B_s))."""
        target = _select(self.data.train, rows.to(self._counts.device))
        share = torch.rand(len(target), generator=self._generator, device=self._counts.device)
        return self.pairs(target, share)

    def pairs(self, target: Behaviors, share: Tensor) -> PairBatch:
        """Target rows with the source behaviour at ``share`` in [0, 1) of the user's own ones."""
        count = self._counts[target.user]
        # float32 can round share·count up to count.
        place = torch.minimum((share * count).long(), (count - 1).clamp(min=0))
        return self._with_source(target, self.data.source_offsets[target.user] + place, count > 0)

    def source_rows(self, rows: Tensor) -> PairBatch:
        """Source behaviours by their own row, beside a target that means nothing."""
        data = self.data
        nothing = torch.zeros_like(rows)
        target = Behaviors(data.source.user[rows], nothing, nothing.float())
        return self._with_source(target, rows, torch.ones_like(rows, dtype=torch.bool))

    def _with_source(self, target: Behaviors, rows: Tensor, has_source: Tensor) -> PairBatch:
        data = self.data
        rows = rows.masked_fill(~has_source, 0)
        item = data.source.item[rows].masked_fill(~has_source, data.source_items.num)
        category = data.source_items.category
        padded = torch.cat([category, category.new_tensor([data.source_items.num_categories])])
        histories: dict[str, History] = {}
        if self.history_length:
            histories = {
                "source_history": self._history("source", rows, has_source, exclude=item),
                "target_history": self._history("target", rows, has_source),
            }
        return PairBatch(
            user=target.user,
            target=Candidates(target.item, data.target_items.category[target.item]),
            source=Candidates(item, padded[item]),
            target_label=target.label,
            source_label=data.source.label[rows].masked_fill(~has_source, 0.0),
            has_source=has_source,
            relevant=None if data.relevant is None else data.relevant[rows],
            **histories,
        )

    def _history(
        self, domain: str, rows: Tensor, has_source: Tensor, exclude: Tensor | None = None
    ) -> History:
        data = self.data
        slots, items = (
            (data.source_history, data.source_items)
            if domain == "source"
            else (data.target_history, data.target_items)
        )
        item, mask = slots.gather(rows, self.history_length, exclude)
        return History(Candidates(item, items.category[item]), mask & has_source[:, None])


def _select(rows: Behaviors, index: Tensor) -> Behaviors:
    return Behaviors(rows.user[index], rows.item[index], rows.label[index])
