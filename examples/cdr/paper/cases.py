"""Single source behaviours that were weighted low or high for their user (Figure 6)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cdr.data import OTHERS, CrossDomainData
from cdr.paper.learned_weights import Floats
from cdr.report import Sheet, sheet

_EACH = 2  # cases of low and of high weight
SHOWN = 8
"""Behaviours of a history that are shown."""
_LEAST = 3  # behaviours in both histories for a case to say something

Titles = Callable[[Collection[str]], Mapping[str, str]]
"""From ids of items to the titles that are known."""


@dataclass(frozen=True)
class Case:
    """One source behaviour.

    Attributes:
        kind: "low" or "high".
        own: its weight over the mean weight of its category: the part that is specific to the user.
        weight: as learned.
        item: category and title.
        label: whether the behaviour is positive.
        source_history: the user's source positives before it, newest last.
        target_history: the user's target positives up to it, likewise.
    """

    kind: str
    own: float
    weight: float
    item: str
    label: bool
    source_history: tuple[str, ...]
    target_history: tuple[str, ...]

    def sheet(self, title: str) -> Sheet:
        """The case as a table."""
        rows = [
            ("weight", f"{self.weight:.4f}"),
            ("source behaviour", f"{self.item}, {'positive' if self.label else 'negative'}"),
            ("source history", numbered(self.source_history)),
            ("target history", numbered(self.target_history)),
        ]
        return sheet(("user-specific weight", f"{self.own:.3f}"), rows, left=2, title=title)


def user_specific(data: CrossDomainData, weights: NDArray[np.float32]) -> Floats:
    """Weight of every source behaviour over the mean weight of its category."""
    category = data.source_items.category[data.source.item].numpy()
    num = np.bincount(category)
    mean = np.bincount(category, weights) / np.maximum(num, 1)
    return np.asarray(weights / np.maximum(mean[category], 1e-12), dtype=np.float64)


def cases(data: CrossDomainData, weights: NDArray[np.float32], titles: Titles) -> list[Case]:
    """The lowest and the highest user-specific weights, each of another user.

    Behaviours with short histories are left out as long as there are others.
    """
    own = user_specific(data, weights)
    rows = torch.arange(len(data.source))
    source, target = (mask.sum(1) for _, mask in _histories(data, rows))
    length = torch.minimum(source, target).numpy()
    rich = np.flatnonzero(length >= min(_LEAST, int(length.max())))
    ranked = rich[np.argsort(own[rich], kind="stable")].tolist()
    chosen: dict[int, str] = {}
    seen: set[int] = set()
    for kind, order in (("low", ranked), ("high", ranked[::-1])):
        for row in order:
            user = int(data.source.user[row])
            if list(chosen.values()).count(kind) < _EACH and user not in seen:
                seen.add(user)
                chosen[row] = kind
    shown = {row: _shown(data, row) for row in chosen}
    known = titles({name for items in shown.values() for part in items for name, _ in part})
    found = []
    for row, kind in chosen.items():
        (item,), source_history, target_history = (
            tuple(_named(name, category, known) for name, category in part) for part in shown[row]
        )
        found.append(
            Case(
                kind=kind,
                own=float(own[row]),
                weight=float(weights[row]),
                item=item,
                label=bool(data.source.label[row]),
                source_history=source_history,
                target_history=target_history,
            )
        )
    return found


def _shown(data: CrossDomainData, row: int) -> tuple[list[tuple[str, str]], ...]:
    """Id and category of a source behaviour's item, and of those of its user's two histories."""
    behaviour = data.source.item[row : row + 1]
    parts = [(data.source_items, behaviour)]
    histories = _histories(data, torch.tensor([row]))
    for items, (found, mask) in zip((data.source_items, data.target_items), histories, strict=True):
        parts.append((items, found[mask]))
    return tuple(
        [
            (str(items.ids[item]), items.category_names[int(items.category[item])])
            for item in found.tolist()
        ]
        for items, found in parts
    )


def _histories(data: CrossDomainData, rows: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The items of both histories of some source behaviours, as the weighter sees them."""
    candidate = data.source.item[rows]
    return [
        data.source_history.gather(rows, SHOWN, exclude=candidate),
        data.target_history.gather(rows, SHOWN),
    ]


def _named(name: str, category: str, titles: Mapping[str, str]) -> str:
    """Category and title, as far as they are known; else the item's id."""
    title = titles.get(name, "")
    if category == OTHERS:
        return title or name
    category = f"category {category}" if category.isdigit() else category
    return f"{category} ({title})" if title else category


def numbered(history: tuple[str, ...]) -> str:
    """The items of a history in one line."""
    return "; ".join(f"{i}. {item}" for i, item in enumerate(history, 1)) or "–"
