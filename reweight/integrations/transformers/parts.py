"""What part of an optimizer step each micro-batch of each process is.

The Trainer's loss of an optimizer step is ``Σ w L`` over the micro-batches of all processes, ``L``
the mean of the weighted losses of one of them and ``w`` its share of the items (tokens, or rows)
that the loss is a mean over. An outer step joins the micro-batches that the processes have at the
same time, and knows them by their numbers of losses. With losses that are multiplied by ``scale``
it is the outer step on one batch of all their samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from reweight import Losses


@dataclass(frozen=True)
class Part:
    """The part of one micro-batch of one process.

    Attributes:
        training: what its mean of scaled losses is multiplied by in training; the gradients are
            averaged over the processes afterwards.
        outer: what the hypergradient of the micro-batches that the processes have at the same time
            is multiplied by.
        scale: of the losses; 1 for a single process.
    """

    training: Tensor | float = 1.0
    outer: Tensor | float = 1.0
    scale: Tensor | float = 1.0


def parts_of(counts: Tensor, rank: int, by_all: bool) -> list[Part]:
    """The parts of the micro-batches of one process.

    Args:
        counts: ``[R, K, 2]`` integers: the items and the losses of ``K`` micro-batches of ``R``
            processes.
        rank: of the process.
        by_all: whether every item counts alike, or every process.

    Example:
        >>> import torch
        >>> one, = parts_of(torch.tensor([[[10, 4]], [[30, 4]]]), rank=1, by_all=True)
        >>> float(one.training), float(one.outer), float(one.scale)
        (1.0, 1.0, 1.5)
    """
    items, losses = counts.unbind(-1)
    size = len(counts)
    total = items.sum() if by_all else size * items.sum(1, keepdim=True)
    shares = items / total.clamp(min=1)
    outer = shares.sum(0)
    of_losses = losses / losses.sum(0).clamp(min=1)
    # 0/0 of a micro-batch without losses, which no scale changes.
    scale = (shares[rank] / outer / of_losses[rank]).nan_to_num(1.0, 1.0, 1.0)
    training = outer * of_losses[rank] * size
    return [Part(*each) for each in zip(training, outer, scale, strict=True)]


@dataclass(frozen=True)
class Scaled:
    """A batch whose losses are multiplied by a number."""

    batch: Mapping[str, Any]
    scale: Tensor | float

    def of(self, losses: Losses) -> Losses:
        """The losses of the batch, multiplied."""
        found = Losses(losses.weighted * self.scale, losses.fixed * self.scale, losses.inputs)
        object.__setattr__(found, "outputs", losses.outputs)  # those of Losses.of
        return found
