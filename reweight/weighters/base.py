"""The base class of all weighters."""

from __future__ import annotations

import abc
from typing import Any

from torch import Tensor, nn

from reweight._tensors import counted, spread


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

    Attributes:
        bounds: the interval of all weights, ``(low, high)``, as an attribute or a property. It is
            optional. Where it is stated, outer steps warn when all weights of a batch have run to
            one end of it, where their gradient vanishes. ``None``: there are no bounds.
        compares_samples: whether a weight depends on the other samples of the batch. It is
            optional, too; see :func:`reweight.whole_batch` for runs of many processes.

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

    # Without a value: a default here would hide a parameter or a buffer of that name.
    bounds: tuple[float, float] | None
    compares_samples: bool

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

    def __str__(self) -> str:
        count = sum(p.numel() for p in self.parameters())
        parts = [counted(count, "parameter")]
        bounds = stated_bounds(self)
        if bounds is not None:
            parts.append("weights between {:.3g} and {:.3g}".format(*bounds))
        own = self._own_weights()
        if own is not None and (values := spread(own)):
            parts.append(f"{counted(own.numel(), 'weight')}: {values}")
        return f"{type(self).__name__}({self.extra_repr()}), {', '.join(parts)}"

    def _own_weights(self) -> Tensor | None:
        """All weights, where they do not depend on the batch."""
        return None


def stated_bounds(weighter: nn.Module) -> tuple[float, float] | None:
    """The bounds of the weights, or ``None`` if the weighter states none.

    Raises:
        TypeError: the bounds of a :class:`SampleWeighter` are not two numbers.
    """
    bounds = getattr(weighter, "bounds", None)
    if isinstance(bounds, (tuple, list)) and len(bounds) == 2:
        return float(bounds[0]), float(bounds[1])
    if bounds is not None and isinstance(weighter, SampleWeighter):
        name = type(weighter).__name__
        raise TypeError(
            f"{name}.bounds is {bounds!r}: it must be the interval of all weights, such as "
            "(0.0, 2.0), or None where there are no bounds"
        )
    return None
