"""What a weighter that compares samples needs of the other processes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reweight._tensors import shared


def whole_batch(x: Tensor) -> tuple[Tensor, slice]:
    """The rows that all processes of a data-parallel run have, and the place of one's own.

    For weighters whose weights depend on the other samples of the batch: the batch of an outer step
    is that of all processes. Such a weighter also sets ``compares_samples = True``, so that
    ``rw.loss(batch)`` exchanges what is needed; every process then has to call it.

    Args:
        x: one row for each sample of this process, ``[B, ...]``.

    Returns:
        The rows of all processes, one process after the other, with their gradients, and the slice
        of it that is ``x``. With one process that is ``x`` itself.

    Example:
        >>> import torch, reweight
        >>> class Relative(reweight.SampleWeighter):
        ...     '''Weights by the loss, with a mean of 1.'''
        ...     compares_samples = True
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.slope = torch.nn.Parameter(torch.zeros(()))
        ...     def forward(self, losses, inputs):
        ...         powers = (self.slope * losses).exp()
        ...         return powers / reweight.whole_batch(powers)[0].mean()
        >>> Relative()(torch.tensor([0.3, 2.0]), None).tolist()
        [1.0, 1.0]
    """
    # A compiled step is one of a single process, and dynamo can't trace a context variable.
    group = None if torch.compiler.is_compiling() else shared()
    return (x, slice(0, len(x))) if group is None else group.whole(x)


def compares_samples(weighter: nn.Module) -> bool:
    """Whether a weighter says that its weights depend on the other samples of the batch."""
    return bool(getattr(weighter, "compares_samples", False))
