"""One weight per sample, or per group of samples."""

from __future__ import annotations

import abc

import torch
from torch import Tensor, nn

from reweight._tensors import can_read
from reweight.weighters._positive import positive
from reweight.weighters.base import SampleWeighter


class _LookupWeighter(SampleWeighter):
    """A table of positive weights, looked up by id; ``_counted`` is ``"sample"`` or ``"group"``."""

    @property
    @abc.abstractmethod
    def _counted(self) -> str: ...

    def __init__(self, size: int) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(
                f"num_{self._counted}s={size!r}: there must be at least one {self._counted}."
            )
        self.raw = nn.Parameter(torch.zeros(size))

    def forward(self, losses: Tensor, inputs: Tensor) -> Tensor:
        """Look the weights up.

        Args:
            losses: Per-sample losses, shape [B]; only the shape is used.
            inputs: Ids, int64, shape [B], from 0 to the table size minus 1.

        Returns:
            Weights, shape [B], all positive.

        Raises:
            TypeError: ``inputs`` is not an int64 tensor.
            ValueError: ``inputs`` has another shape than ``losses``, or an id is out of range.
        """
        self._check(losses, inputs)
        return positive(self.raw.index_select(0, inputs))

    def extra_repr(self) -> str:
        """The size of the table, as the constructor argument."""
        return f"num_{self._counted}s={self.raw.shape[0]}"

    def _own_weights(self) -> Tensor:
        return positive(self.raw.detach())

    def _check(self, losses: Tensor, ids: Tensor) -> None:
        name, counted, size = type(self).__name__, self._counted, self.raw.shape[0]
        if not isinstance(ids, Tensor) or ids.dtype != torch.int64:
            got = f"dtype {ids.dtype}" if isinstance(ids, Tensor) else f"a {type(ids).__name__}"
            raise TypeError(
                f"inputs: {name} needs {counted} ids as an int64 tensor [B], got {got}. Return "
                "Losses(..., inputs=ids.long())."
            )
        if ids.shape != losses.shape:
            raise ValueError(
                f"inputs: {name} needs one {counted} id per loss, got ids of shape "
                f"{list(ids.shape)} for losses of shape {list(losses.shape)}. Take the ids from "
                "the same batch and flatten them to [B]."
            )
        # Reading values would split a compiled graph, and is not allowed in a CUDA graph.
        if torch.compiler.is_compiling() or not can_read(ids):
            return
        wrong = (ids < 0) | (ids >= size)
        if wrong.any():
            position = int(wrong.nonzero()[0, 0])
            raise ValueError(
                f"inputs: {counted} id {int(ids[position])} at position {position} of the batch "
                f"is outside 0..{size - 1}. {name} was built with num_{counted}s={size}: number "
                f"the {counted}s from 0, and set num_{counted}s above the largest id."
            )


class TableWeighter(_LookupWeighter):
    """One learnable positive weight per training sample.

    This is the most general reweighting of a training set. The samples share no parameters: a
    weight changes only in outer steps whose batch holds its sample. Use it to find mislabelled
    samples, or as a reference for weighters that generalise. The gradient is dense, of the size of
    the table.

    Args:
        num_samples: Size of the training set; ids are 0 to ``num_samples - 1``.

    Raises:
        ValueError: If ``num_samples`` is below 1.

    Example:
        >>> import torch
        >>> from reweight.weighters import TableWeighter
        >>> weighter = TableWeighter(num_samples=1000)
        >>> weighter(torch.tensor([0.7, 0.2]), torch.tensor([12, 999])).tolist()
        [1.0, 1.0]
    """

    def __init__(self, num_samples: int) -> None:
        super().__init__(num_samples)

    @property
    def _counted(self) -> str:
        return "sample"


class GroupWeighter(_LookupWeighter):
    """One learnable positive weight per group: a domain, a class, an annotator, a source.

    Args:
        num_groups: Number of groups; ids are 0 to ``num_groups - 1``.

    Raises:
        ValueError: If ``num_groups`` is below 1.

    Example:
        >>> import torch
        >>> from reweight.weighters import GroupWeighter
        >>> weighter = GroupWeighter(num_groups=3)
        >>> group_of_each_sample = torch.tensor([2, 0, 2, 1])
        >>> weighter(torch.rand(4), group_of_each_sample).tolist()
        [1.0, 1.0, 1.0, 1.0]

        The weights of all groups:

        >>> weighter(torch.zeros(3), torch.arange(3)).tolist()
        [1.0, 1.0, 1.0]
    """

    def __init__(self, num_groups: int) -> None:
        super().__init__(num_groups)

    @property
    def _counted(self) -> str:
        return "group"
