"""What is known of a source behaviour beside its item: further inputs of the perceptron."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from cdr.data.schema import CrossDomainData

Fact = Literal["label", "popularity", "recency", "liking"]


def source_facts(data: CrossDomainData, names: Sequence[Fact], columns: int) -> Tensor:
    """One row of numbers per source behaviour, [len(data.source), columns], float32.

    "label": 1 for a positive behaviour, -1 for a negative one. "popularity": the logarithm of how
    many source behaviours have its item, less the mean over the behaviours, in standard
    deviations. "recency": its place among the user's own, from -1 for the first to 1 for the last,
    0 for a single one. "liking": the share of positives among the item's other behaviours, with one
    average behaviour more, from -1 to 1. Nothing of the target domain enters.

    Args:
        data: On any device.
        names: In the order of the columns; the columns that are left are 0.
        columns: At least as many as names.

    Example:
        >>> from cdr.data.generator import generate
        >>> data = generate("G1", num_users=50, seed=1)
        >>> facts = source_facts(data, ["label", "recency"], 4)
        >>> facts[0].tolist()  # a liked item, the first of its user
        [1.0, -1.0, 0.0, 0.0]
    """
    made = {"label": _label, "popularity": _popularity, "recency": _recency, "liking": _liking}
    facts = torch.zeros(len(data.source), columns, device=data.source.user.device)
    for column, name in enumerate(names):
        facts[:, column] = made[name](data)
    return facts


def _label(data: CrossDomainData) -> Tensor:
    return 2 * data.source.label - 1


def _popularity(data: CrossDomainData) -> Tensor:
    item = data.source.item
    count = item.bincount(minlength=data.source_items.num).index_select(0, item).double().log()
    spread = count.std(correction=0)
    # Without a spread there is nothing to tell; the smallest number keeps 0 / 0 from being NaN.
    return (count - count.mean()) / spread.clamp_min(torch.finfo(spread.dtype).tiny)


def _recency(data: CrossDomainData) -> Tensor:
    user, offsets = data.source.user, data.source_offsets
    place = torch.arange(len(user), device=user.device) - offsets.index_select(0, user)
    last = (offsets.diff() - 1).index_select(0, user)
    return torch.where(last > 0, 2 * place / last.clamp_min(1) - 1, 0.0)


def _liking(data: CrossDomainData) -> Tensor:
    item, label = data.source.item, data.source.label.double()
    num = data.source_items.num
    count = item.bincount(minlength=num).index_select(0, item)
    positive = torch.zeros(num, dtype=label.dtype, device=label.device).index_add_(0, item, label)
    others = positive.index_select(0, item) - label
    # As one behaviour more, an average one.
    mean = (others + label.mean()) / count
    return 2 * mean - 1
