"""What every weighter is."""

from __future__ import annotations

import abc
from typing import Any

from torch import Tensor, nn


class SampleWeighter(nn.Module, abc.ABC):
    r"""Maps a batch of losses, and whatever else is known of the samples, to one weight each.

    Subclass it and write :meth:`forward`. ``reweight.wrap`` does the rest:

    * ``losses`` and every tensor in ``inputs`` arrive detached, so the weights never depend on the
      model's parameters θ through the graph. That is what BIAO asks for (Chen et al., WWW'23: "we
      stop its gradient in the perceptron"), and what makes the hypergradient
      :math:`-\sum_i s_i\, \partial\gamma_i/\partial\phi` one ordinary backward pass.
    * The weighter is therefore never differentiated twice: any operation with a first derivative
      may be used, fused kernels and custom autograd functions included.
    * The weights multiply the losses as they are; nothing is clipped or normalised afterwards.

    A new weighter should start at weights of about 1, so that wrapping a model leaves its loss
    as it was until the weighter has learned something. Zeroing the last layer does that; see
    ``LossWeighter`` for the pattern.

    Example:
        >>> import torch
        >>> from reweight.weighters import SampleWeighter
        >>> class Temperature(SampleWeighter):
        ...     '''Weights that fall, or rise, exponentially with the loss.'''
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.slope = torch.nn.Parameter(torch.zeros(()))
        ...     def forward(self, losses, inputs):
        ...         return torch.exp(self.slope * losses)
        >>> Temperature()(torch.tensor([0.3, 2.0]), None).tolist()
        [1.0, 1.0]
    """

    @abc.abstractmethod
    def forward(self, losses: Tensor, inputs: Any) -> Tensor:
        """Compute the weight of every sample.

        Args:
            losses: Per-sample losses, shape [B], detached.
            inputs: What ``Losses.inputs`` held for this batch, detached; each weighter says what
                it expects.

        Returns:
            Weights, shape [B], in the batch's order.
        """
