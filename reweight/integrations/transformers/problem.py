"""What ``reweight.wrap`` gets of a Trainer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

import reweight
from reweight.integrations.transformers.losses import LossesFn, rows
from reweight.integrations.transformers.parts import Scaled


@dataclass(frozen=True)
class StatedLosses:
    """The losses as ``reweight.wrap`` takes them.

    Args:
        losses: ``(model, batch, groups)``.
        column: of the batch, which becomes ``groups``; the model does not see it.
        one_per_row: whether anything but one loss per row is an error.
    """

    losses: LossesFn
    column: str | None
    one_per_row: bool

    @property
    def name(self) -> str:
        """Of the user's function."""
        return getattr(self.losses, "__name__", repr(self.losses))

    def __call__(self, model: Any, batch: Any) -> reweight.Losses:
        """The losses of a train batch, which is a dict or :class:`Scaled`.

        Raises:
            KeyError: the batch has no such column.
            ValueError: there is not one loss per row where there has to be.
        """
        if isinstance(batch, Scaled):
            return batch.of(self(model, batch.batch))
        inputs = {k: v for k, v in batch.items() if k != self.column}
        if self.column is not None and self.column not in batch:
            raise KeyError(
                f"the batch has no column {self.column!r}, only {sorted(batch)}: the training set "
                "has no such column, or its preparation dropped it, as packing does"
            )
        found = self.losses(model, inputs, None if self.column is None else batch[self.column])
        losses = found if isinstance(found, reweight.Losses) else reweight.Losses(found)
        if self.one_per_row and len(losses.weighted) != rows(inputs):
            raise ValueError(
                f"{self.name} returned {len(losses.weighted)} losses for a batch of "
                f"{rows(inputs)} rows: with gradient_accumulation_steps above 1 or several "
                "processes, the micro-batches are averaged by their rows, so return one loss per "
                "row"
            )
        return losses


@dataclass(frozen=True)
class OuterLoss:
    """The mean loss of a dev batch, without weights."""

    stated: StatedLosses

    def __call__(self, model: Any, batch: Any) -> Tensor:
        """The loss of a dev batch, which is a dict or :class:`Scaled`."""
        if isinstance(batch, Scaled):
            return self(model, batch.batch) * batch.scale
        inputs = {k: v for k, v in batch.items() if k != self.stated.column}
        found = self.stated.losses(model, inputs, None)
        if isinstance(found, Tensor):
            return found.mean()
        return found.weighted.mean() + found.fixed
