"""The histories of a batch in their two forms, padded and as slices of one list."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class HistorySlices(NamedTuple):
    """Histories without padding: each is a slice of one list of behaviours.

    Slices may overlap, as those of the histories of one user do. So a behaviour is embedded once,
    however many histories hold it, and no padding is embedded. On devices other than the CPU the
    host waits for the lengths.

    Attributes:
        behaviors: Embeddings of all behaviours, [P, D].
        start: First behaviour of each history, long [B].
        length: Number of its behaviours, long [B]; 0 for none.
    """

    behaviors: Tensor
    start: Tensor
    length: Tensor


class Part(NamedTuple):
    """Some histories, as the attention reads them.

    Attributes:
        history: Behaviours, [B, N, D].
        bias: Added to the scores of each key, [B, N]: -inf for keys that are not attended to.
        share: The share of each query in the mean, [B, N].
    """

    history: Tensor
    bias: Tensor
    share: Tensor


class Histories(Protocol):
    """The histories of a batch.

    One without a real behaviour has no mean. Where padding is not attended to, it counts as one
    behaviour of zeros, so that its interest still depends on the candidate. If the interest were
    zero, all candidates of such a user would get the same weight.
    """

    @property
    def longest(self) -> int:
        """Positions that no history exceeds."""

    def needed(self) -> Tensor:
        """Positions up to the last one that matters, long [B]; 0 where the average is zero."""

    def total(self) -> Tensor | float:
        """The sum of each row's shares, [B, 1]; 1 where an empty history counts as one zero."""

    def part(self, end: int, rows: Tensor | None = None) -> Part:
        """The first positions of some histories, or of all.

        Args:
            end: Positions to keep.
            rows: Long [b]; None: all.
        """


@dataclass(frozen=True, eq=False)
class Padded:
    """Histories of one length, some positions of which are not real.

    Args:
        history: Behaviours, [B, N, D].
        mask: True where a behaviour is real, [B, N], bool.
        mask_keys: True: padded positions are not attended to, and the mean is over the real
            positions. False, as in the authors' code: padded positions are attended to, their own
            outputs are zero, and the mean divides by N.
    """

    history: Tensor
    mask: Tensor
    mask_keys: bool

    @property
    def longest(self) -> int:
        return self.history.shape[1]

    def needed(self) -> Tensor:
        if self.mask_keys and self.longest:
            return (self.mask * torch.arange(1, self.longest + 1)).amax(1)
        return self.mask.any(1) * self.longest

    def total(self) -> Tensor | float:
        if self.mask_keys:
            return 1.0
        # With unmasked keys the shares of n real positions sum to n/N.
        return self.mask.to(self.history.dtype).sum(1, keepdim=True) / max(self.longest, 1)

    def part(self, end: int, rows: Tensor | None = None) -> Part:
        history, mask = self.history[:, :end], self.mask[:, :end]
        if rows is not None:
            history, mask = history.index_select(0, rows), mask.index_select(0, rows)
        if self.mask_keys:
            return _masked(history, mask)
        share = mask.to(history.dtype) / max(self.longest, 1)
        return Part(history, torch.zeros_like(share), share)


@dataclass(frozen=True, eq=False)
class Sliced:
    """Histories that are slices of one list; they have no position that is not real."""

    slices: HistorySlices

    @property
    def longest(self) -> int:
        return int(self.slices.length.max()) if len(self.slices.length) else 0

    def needed(self) -> Tensor:
        return self.slices.length

    def total(self) -> Tensor | float:
        return 1.0

    def part(self, end: int, rows: Tensor | None = None) -> Part:
        behaviors, start, length = self.slices
        if rows is not None:
            start, length = start.index_select(0, rows), length.index_select(0, rows)
        place = torch.arange(end, device=start.device)
        mask = place < length.unsqueeze(1)
        # What stands behind the end of a short history is some other behaviour, and is masked.
        index = (start.unsqueeze(1) + place).clamp_(max=len(behaviors) - 1)
        history = behaviors.index_select(0, index.flatten()).view(*index.shape, behaviors.shape[1])
        return _masked(history, mask)


def _masked(history: Tensor, mask: Tensor) -> Part:
    count = mask.sum(1, keepdim=True)
    share = mask / count.clamp(min=1).to(history.dtype)
    # An empty history attends to its padding, with share 0: -inf everywhere would give NaN.
    bias = history.new_zeros(mask.shape).masked_fill_(~mask & (count > 0), -math.inf)
    return Part(history, bias, share)
