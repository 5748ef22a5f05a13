"""One weight for all samples."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from reweight.weighters._positive import positive, positive_inverse
from reweight.weighters.base import SampleWeighter


class ConstantWeighter(SampleWeighter):
    """One learnable positive weight shared by every sample.

    It is the global γ that joint training usually sets by grid search, for instance the weight of
    an auxiliary task. It uses neither losses nor inputs.

    Args:
        initial: The initial weight, finite and above 0.

    Raises:
        ValueError: If ``initial`` is not a finite positive number.

    Example:
        >>> import torch
        >>> from reweight.weighters import ConstantWeighter
        >>> ConstantWeighter(0.5)(torch.tensor([3.0, 1.0]), None).tolist()
        [0.5, 0.5]
    """

    def __init__(self, initial: float = 1.0) -> None:
        super().__init__()
        if not (math.isfinite(initial) and initial > 0):
            raise ValueError(
                f"initial={initial!r}: initial must be a finite number above 0, because the weight "
                "is always positive. For almost no effect of the weighted losses, use 0.01."
            )
        self.raw = nn.Parameter(torch.tensor(positive_inverse(initial)))

    def forward(self, losses: Tensor, inputs: Any = None) -> Tensor:
        """Return the weight, expanded to the shape of ``losses``.

        Args:
            losses: Per-sample losses, shape [B]; only the shape is used.
            inputs: Ignored.

        Returns:
            Weights, shape [B], all equal.
        """
        return positive(self.raw).expand(losses.shape)

    def _own_weights(self) -> Tensor:
        return positive(self.raw.detach())
