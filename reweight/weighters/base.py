"""The base class of all weighters."""

from __future__ import annotations

import abc
from typing import Any

from torch import Tensor, nn


class SampleWeighter(nn.Module, abc.ABC):
    r"""Maps the losses of a batch, and other inputs, to one weight per sample.

    Subclass it and implement :meth:`forward`. ``reweight.wrap`` guarantees:

    * ``losses`` and every tensor in ``inputs`` are detached, so the weights never depend on the
      model's parameters θ through the graph. BIAO requires this (Chen et al., WWW'23: "we stop its
      gradient in the perceptron"). The hypergradient
      :math:`-\sum_i s_i\, \partial\gamma_i/\partial\phi` is then one ordinary backward pass.
    * The weighter is therefore never differentiated twice. It may use any operation with a first
      derivative, including fused kernels and custom autograd functions.
    * The weights multiply the losses as they are; they are not clipped or normalized.

    A new weighter should start at weights of about 1, so that wrapping a model does not change its
    loss before the first outer step. To achieve this, initialize the last layer to zero, as
    ``LossWeighter`` does.

    Example:
        >>> import torch
        >>> from reweight.weighters import SampleWeighter
        >>> class Temperature(SampleWeighter):
        ...     '''Weights that are exponential in the loss.'''
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
            inputs: ``Losses.inputs`` of this batch, detached; each weighter documents what it
                expects.

        Returns:
            Weights, shape [B], in the order of the batch.
        """
