"""How often to draw each sample, from its weight."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from reweight.valuation._ids import Ids, as_ids, named
from reweight.valuation.values import Floats, SampleValues


def sampling_probabilities(values: SampleValues, *, ids: Any = None, groups: Any = None) -> Tensor:
    """The probability of drawing each sample, for ``torch.utils.data.WeightedRandomSampler``.

    Drawing samples in proportion to their weights, and weighting their losses, have the same
    expected gradient. Do one of the two: both together square the weights. Drawing spends no
    computation on samples of small weight.

    Args:
        values: the weights, none below 0.
        ids: ``[N]``, the id of each sample of your data set, in its order; default: its position,
            where the ids of ``values`` are 0 to N-1.
        groups: ``[N]``, the group of each sample (integers or strings), in the same order. All
            samples of a group then get the group's mean weight, which is less noisy than their own.

    Returns:
        ``[N]``, float64, none below 0, of sum 1 up to rounding.

    Raises:
        ValueError: a negative weight, no weight above 0, a sample without a weight, groups of
            another number, or no ``ids`` where the ids of ``values`` are not positions.

    Example:
        >>> import torch
        >>> from reweight.valuation import SampleValues, sampling_probabilities
        >>> values = SampleValues([0, 1, 2, 3], [0.0, 1.0, 1.0, 2.0])
        >>> p = sampling_probabilities(values)
        >>> p.tolist()
        [0.0, 0.25, 0.25, 0.5]
        >>> sampler = torch.utils.data.WeightedRandomSampler(p, num_samples=100)
        >>> sampling_probabilities(values, groups=["a", "a", "b", "b"]).tolist()
        [0.125, 0.125, 0.375, 0.375]
    """
    weights = _weights(values, ids)
    if groups is not None:
        names = _groups(groups, weights)
        _, group, sizes = np.unique(names, return_inverse=True, return_counts=True)
        weights = (np.bincount(group, weights) / sizes)[group]
    return torch.tensor(weights / weights.sum(), dtype=torch.float64)


def group_probabilities(
    values: SampleValues, groups: Any, *, ids: Any = None
) -> dict[int | str, float]:
    """The probability of drawing from each group: its share of the sum of all weights.

    It is the mixture to pass to a loader that draws a group first and then a sample of it.

    Args:
        values: the weights, none below 0.
        groups: ``[N]``, the group of each sample: integers or strings.
        ids: as for :func:`sampling_probabilities`.

    Returns:
        Group -> probability, sorted by group, of sum 1 up to rounding.

    Raises:
        ValueError: as :func:`sampling_probabilities`.

    Example:
        >>> from reweight.valuation import SampleValues, group_probabilities
        >>> group_probabilities(SampleValues([0, 1, 2], [1.0, 1.0, 2.0]), ["web", "book", "book"])
        {'book': 0.75, 'web': 0.25}
    """
    weights = _weights(values, ids)
    names, group = np.unique(_groups(groups, weights), return_inverse=True)
    shares = np.bincount(group, weights) / weights.sum()
    return dict(zip(names.tolist(), shares.tolist(), strict=True))


def _weights(values: SampleValues, ids: Any) -> Floats:
    if ids is None and not np.array_equal(values.ids, np.arange(len(values))):
        raise ValueError(
            "ids: pass the ids of your data set's samples, in its order. The ids of values are not "
            f"the positions 0 to {len(values) - 1} (they are {named(values.ids)}), so the "
            "order can't be known"
        )
    weights = values.weights if ids is None else values.weights_of(ids)
    if (weights < 0.0).any():
        bad = values.ids[values.weights < 0.0]
        raise ValueError(
            f"values: the weights of {len(bad)} samples are below 0 ({named(bad)}), and a "
            "probability can't be. Set them to 0 if these samples are to be left out"
        )
    if not weights.sum() > 0.0:
        raise ValueError(
            "values: no weight is above 0, so there is nothing to draw: lower the outer learning "
            "rate of the search, or stop it earlier"
        )
    return weights


def _groups(groups: Any, weights: Floats) -> Ids:
    names = as_ids(groups, "groups")
    if len(names) != len(weights):
        raise ValueError(
            f"groups: there are {len(names)} of them for {len(weights)} samples: pass one for "
            "each, in the same order"
        )
    return names
