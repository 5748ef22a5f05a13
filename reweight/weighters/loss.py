"""Weights as a function of the losses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from reweight.weighters._mean_one import mean_one
from reweight.weighters._mlp import mlp
from reweight.weighters._positive import positive
from reweight.weighters._whole_batch import whole_batch
from reweight.weighters.base import SampleWeighter

# Losses below this share of the batch's mean loss count as zero.
_RESOLUTION = 1e-3


class LossWeighter(SampleWeighter):
    r"""A small network that maps a sample's loss to its weight; the mean weight of a batch is 1.

    A large loss can mean a wrong label or a hard, useful sample; the network learns which. It has
    one hidden ReLU layer, as Meta-Weight-Net (Shu et al., "Meta-Weight-Net: Learning an Explicit
    Mapping For Sample Weighting", NeurIPS 2019), and differs from it in two points:

    * Its input is the logarithm of the loss, standardized in the batch, so that it sees the same
      differences early and late in training, whatever the unit of the loss.
    * Its outputs :math:`h_i` give the weights :math:`\gamma_i = B\,\mathrm{softmax}(h)_i`. A
      sigmoid, as in the paper, runs to its bound where all samples help, and stays there.

    The last layer is initialized to zero, so every weight starts at exactly 1. A weight depends on
    the other samples of the batch: a batch of one sample always has the weight 1, and small batches
    give noisy weights. Use batches of 16 samples or more.

    Recommended outer optimizer: ``torch.optim.Adam(weighter.parameters(), lr=1e-3)``, with an
    outer step after every training step, from the first one on; ``lr=3e-3`` with one every 5 steps.
    A rate of 1e-2 let a few samples with large losses take all the weight in some runs.

    Args:
        hidden: Width of the hidden layer.
        learn_scale: Also learn one positive factor of all weights. It has a meaning where
            ``Losses.fixed`` is not zero: it balances the weighted losses against the fixed ones.
            Without a fixed loss leave it out, since the factor then drifts.

    Raises:
        ValueError: If ``hidden`` is below 1.

    Example:
        >>> import torch
        >>> from reweight.weighters import LossWeighter
        >>> LossWeighter()(torch.tensor([0.1, 5.0]), None).tolist()
        [1.0, 1.0]
    """

    compares_samples = True
    raw_scale: nn.Parameter | None

    def __init__(self, hidden: int = 100, learn_scale: bool = False) -> None:
        super().__init__()
        if hidden < 1:
            raise ValueError(f"hidden={hidden!r}: hidden must be at least 1.")
        # The mean cancels a bias of the last layer.
        self.mlp = mlp(1, (hidden,), zero_last=True, last_bias=False)
        scale = nn.Parameter(torch.zeros(())) if learn_scale else None
        self.register_parameter("raw_scale", scale)

    def forward(self, losses: Tensor, inputs: Any = None) -> Tensor:
        """Weight every sample by its loss.

        Args:
            losses: Per-sample losses, shape [B].
            inputs: Ignored.

        Returns:
            Weights above 0 with a mean of 1, shape [B], in the weighter's dtype.
        """
        dtype = next(self.mlp.parameters()).dtype
        losses, own = whole_batch(losses)
        h = self.mlp(_standardized(losses).to(dtype).unsqueeze(-1)).squeeze(-1)
        weights = mean_one(h)[own]
        return weights if self.raw_scale is None else weights * positive(self.raw_scale)

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        scale = "" if self.raw_scale is None else ", learn_scale=True"
        return f"hidden={self.mlp[0].out_features}{scale}"


def _standardized(losses: Tensor) -> Tensor:
    """The logarithm of the losses with a mean of 0 and a variance of 1, shape [B].

    It is asinh(x/ε), with ε a small share of the mean absolute loss: log(2x/ε) for x well above ε,
    and defined for losses of any sign. Equal losses give 0.
    """
    # Half precision would round the squares below away.
    x = losses if losses.dtype == torch.float64 else losses.float()
    tiny = torch.finfo(x.dtype).tiny
    x = torch.asinh(x / (_RESOLUTION * x.abs().mean()).clamp(min=tiny))
    x = x - x.mean()
    return x / (x.square().mean().sqrt() + 1e-6)
