"""One weight per sample, or per group of samples."""

from __future__ import annotations

import abc
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from reweight._tensors import can_branch_on
from reweight.weighters._mean_one import mean_one
from reweight.weighters._positive import positive
from reweight.weighters.base import SampleWeighter


class _LookupWeighter(SampleWeighter):
    """A table of positive weights with a mean of 1; ``_counted`` is ``"sample"`` or ``"group"``."""

    raw_scale: nn.Parameter | None

    @property
    @abc.abstractmethod
    def _counted(self) -> str: ...

    def __init__(self, size: int, learn_scale: bool) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(
                f"num_{self._counted}s={size!r}: there must be at least one {self._counted}."
            )
        if size == 1 and not learn_scale:
            raise ValueError(
                f"num_{self._counted}s=1: the mean of the weights is 1, so a single weight could "
                "not change. Use ConstantWeighter() to learn one weight beside a fixed loss."
            )
        self.raw = nn.Parameter(torch.zeros(size))
        scale = nn.Parameter(torch.zeros(())) if learn_scale else None
        self.register_parameter("raw_scale", scale)

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
        return self.table().index_select(0, inputs)

    def table(self) -> Tensor:
        """All weights, in the order of the ids."""
        weights = mean_one(self.raw, self._shares())
        return weights if self.raw_scale is None else weights * positive(self.raw_scale)

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        scale = "" if self.raw_scale is None else ", learn_scale=True"
        return f"num_{self._counted}s={self.raw.shape[0]}{scale}"

    def _shares(self) -> Tensor | None:
        """Each entry's part in the mean; ``None``: all equal."""
        return None

    def _own_weights(self) -> Tensor:
        return self.table().detach()

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
        if not can_branch_on(ids):
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
    """One learnable positive weight per training sample; their mean over the training set is 1.

    This is the most general reweighting of a training set. The samples share no parameters: but for
    the common mean, a weight changes only in outer steps whose batch holds its sample. Use it to
    find mislabelled samples, or as a reference for weighters that generalise. The gradient is
    dense, of the size of the table.

    Recommended outer optimizer: ``torch.optim.Adam(weighter.parameters(), lr=1e-2)``, with an outer
    step after every training step, from the first one on; ``lr=3e-2`` with one every 5 steps. Let
    every sample take part in many outer steps: with 20 each, the learned weights were no better
    than equal ones on two of three data sets of 1,000 samples; with 200 each, they were on 100.

    Args:
        num_samples: Size of the training set; ids are 0 to ``num_samples - 1``.
        learn_scale: Also learn one positive factor of all weights. It has a meaning where
            ``Losses.fixed`` is not zero: it balances the weighted losses against the fixed ones.
            Without a fixed loss leave it out, since the factor then drifts.

    Raises:
        ValueError: If ``num_samples`` is below 1, or 1 without ``learn_scale``.

    Example:
        >>> import torch
        >>> from reweight.weighters import TableWeighter
        >>> weighter = TableWeighter(num_samples=1000)
        >>> weighter(torch.tensor([0.7, 0.2]), torch.tensor([12, 999])).tolist()
        [1.0, 1.0]
    """

    def __init__(self, num_samples: int, learn_scale: bool = False) -> None:
        super().__init__(num_samples, learn_scale)

    @property
    def _counted(self) -> str:
        return "sample"


class GroupWeighter(_LookupWeighter):
    """One learnable positive weight per group: a domain, a class, an annotator, a source.

    The weights lie on a simplex: their mean is 1, over the groups or, with ``sizes``, over the
    samples. They are a mixture of the groups (:meth:`probabilities`), which can also be sampled.

    Recommended outer optimizer: ``torch.optim.Adam(weighter.parameters(), lr=1e-2)``, with an outer
    step after every training step, from the first one on; ``lr=3e-2`` with one every 5 steps.

    Args:
        num_groups: Number of groups; ids are 0 to ``num_groups - 1``.
        sizes: How many samples each group has (or any multiple of it), positive, ``num_groups``
            numbers. The mean weight of all samples is then 1. Default: groups of equal size.
        learn_scale: Also learn one positive factor of all weights. It has a meaning where
            ``Losses.fixed`` is not zero: it balances the weighted losses against the fixed ones.
            Without a fixed loss leave it out, since the factor then drifts.

    Raises:
        ValueError: If ``num_groups`` is below 1, or 1 without ``learn_scale``; if ``sizes`` are not
            ``num_groups`` finite positive numbers.

    Example:
        >>> import torch
        >>> from reweight.weighters import GroupWeighter
        >>> weighter = GroupWeighter(num_groups=3, sizes=[800, 100, 100])
        >>> group_of_each_sample = torch.tensor([2, 0, 2, 1])
        >>> weighter(torch.rand(4), group_of_each_sample).tolist()
        [1.0, 1.0, 1.0, 1.0]

        The weights of all groups, and the share of each in the weighted loss:

        >>> weighter.table().tolist()
        [1.0, 1.0, 1.0]
        >>> weighter.probabilities()
        tensor([0.8000, 0.1000, 0.1000])
    """

    sizes: Tensor | None

    def __init__(
        self, num_groups: int, sizes: Sequence[float] | None = None, learn_scale: bool = False
    ) -> None:
        super().__init__(num_groups, learn_scale)
        self.register_buffer("sizes", None if sizes is None else _sizes(sizes, num_groups))

    def probabilities(self) -> Tensor:
        """Each group's share in the weighted loss, without gradient: shape [G], sum 1.

        If batches are sampled with these probabilities of the groups, equal weights give the same
        expected gradient, up to a factor, as the learned weights on batches of the data's own
        shares.
        """
        with torch.no_grad():
            shares = mean_one(self.raw, self.sizes)
            if self.sizes is not None:
                shares = shares * self.sizes
            return shares / shares.sum()

    @property
    def _counted(self) -> str:
        return "group"

    def _shares(self) -> Tensor | None:
        return self.sizes


def _sizes(sizes: Sequence[float], num_groups: int) -> Tensor:
    checked = torch.as_tensor(sizes, dtype=torch.get_default_dtype()).detach().clone()
    if checked.shape != (num_groups,):
        raise ValueError(
            f"sizes has shape {list(checked.shape)}: it must hold one number for each of the "
            f"{num_groups} groups (num_groups={num_groups})."
        )
    if not bool((checked.isfinite() & (checked > 0)).all()):
        position = int((~(checked.isfinite() & (checked > 0))).nonzero()[0, 0])
        raise ValueError(
            f"sizes[{position}]={float(checked[position])!r}: the size of a group must be a finite "
            "number above 0. Leave out a group without samples, and number the others anew."
        )
    # Shares instead of counts: half precision does not hold large counts.
    return checked / checked.sum()
