"""Weights as a function of the losses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from reweight.weighters._mlp import mlp
from reweight.weighters.base import SampleWeighter


class LossWeighter(SampleWeighter):
    """Meta-Weight-Net: a small network that maps a sample's loss to its weight.

    The network has one hidden ReLU layer and a sigmoid (Shu et al., "Meta-Weight-Net: Learning an
    Explicit Mapping For Sample Weighting", NeurIPS 2019). A large loss can mean a wrong label or a
    hard, useful sample; the network learns which. The sigmoid is doubled and the last layer is
    initialized to zero, so every weight starts at exactly 1 and stays between 0 and 2.

    Args:
        hidden: Width of the hidden layer.

    Raises:
        ValueError: If ``hidden`` is below 1.

    Example:
        >>> import torch
        >>> from reweight.weighters import LossWeighter
        >>> LossWeighter()(torch.tensor([0.1, 5.0]), None).tolist()
        [1.0, 1.0]
    """

    bounds = (0.0, 2.0)

    def __init__(self, hidden: int = 100) -> None:
        super().__init__()
        if hidden < 1:
            raise ValueError(f"hidden={hidden!r}: hidden must be at least 1.")
        self.mlp = mlp(1, (hidden,), zero_last=True)

    def forward(self, losses: Tensor, inputs: Any = None) -> Tensor:
        """Weight every sample by its loss.

        Args:
            losses: Per-sample losses, shape [B].
            inputs: Ignored.

        Returns:
            Weights in (0, 2), shape [B], in the weighter's dtype.
        """
        dtype = next(self.mlp.parameters()).dtype
        return 2.0 * torch.sigmoid(self.mlp(losses.to(dtype).unsqueeze(-1)).squeeze(-1))

    def extra_repr(self) -> str:
        """The constructor argument."""
        return f"hidden={self.mlp[0].out_features}"
