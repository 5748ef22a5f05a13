"""Learned weights as a page shows them: by category, their distribution, the extremes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cdr.data import CrossDomainData
from cdr.report.readable import readable

_CATEGORIES = 24  # with a line of their own
_BINS = 20
_EXTREMES = 10  # behaviours of the highest and of the lowest weight

Titles = Callable[[Collection[str]], Mapping[str, str]]
"""From ids of items to the titles that are known."""


@dataclass(frozen=True)
class Category:
    """A line of the table by category.

    Attributes:
        name: Of the category.
        count: Its behaviours.
        liked: The share of positive ones.
        weight: Their mean weight, over all seeds.
        spread: Standard deviation of the mean weight over seeds; None for a single seed.
    """

    name: str
    count: int
    liked: float
    weight: float
    spread: float | None


@dataclass(frozen=True)
class Bin:
    """A bar of the histogram.

    Attributes:
        low: The lowest weight in it.
        high: All weights in it are below, but the last bar has all that are higher.
        count: Behaviours in it.
    """

    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Behaviour:
    """A source behaviour of a very high or very low weight.

    Attributes:
        weight: Mean over seeds.
        item: The title of its item, or its id where that is not known.
        item_id: The id, "" where `item` is the id.
        category: Of the item.
        user: The id of its user.
        liked: Whether it is positive.
    """

    weight: float
    item: str
    item_id: str
    category: str
    user: str
    liked: bool


@dataclass(frozen=True, eq=False)
class Learned:
    """The weights that a variant has learned.

    Args:
        label: Model and variant.
        data: What they are of.
        weights: Of each seed the weight of each source behaviour, [seeds, n].
        titles: Finds titles of items.
    """

    label: str
    data: CrossDomainData
    weights: NDArray[np.float32]
    titles: Titles = lambda items: {}

    @cached_property
    def mean(self) -> NDArray[np.float64]:
        """The mean weight of each behaviour over seeds, [n]."""
        return np.asarray(self.weights.mean(0, dtype=np.float64))

    @property
    def sentence(self) -> str:
        """How many weights there are, and where they lie."""
        num_seeds, num = self.weights.shape
        low, middle, high = np.quantile(self.mean, (0.05, 0.5, 0.95))
        told = f"of {num_seeds} seeds, averaged for each behaviour" if num_seeds > 1 else "one seed"
        return (
            f"{num:,} source behaviours, {told}. 5 % of the weights are below {low:.3f}, half are "
            f"below {middle:.3f}, 5 % are above {high:.3f}. A weight of 1 leaves a loss as it is."
        )

    @cached_property
    def categories(self) -> tuple[tuple[Category, ...], Category | None]:
        """The largest categories, those with the highest weights first; all others as one."""
        items, rows = self.data.source_items, self.data.source
        category = items.category[rows.item].cpu().numpy()
        count = np.bincount(category, minlength=items.num_categories)
        largest = np.argsort(-count, kind="stable")
        largest = largest[count[largest] > 0]
        shown, others = largest[:_CATEGORIES], largest[_CATEGORIES:]
        found = [self._category(items.category_names[c], category == c) for c in shown]
        found.sort(key=lambda one: -one.weight)
        if not len(others):
            return tuple(found), None
        rest = f"{len(others):,} smaller categories"
        return tuple(found), self._category(rest, np.isin(category, others))

    def _category(self, name: str, rows: NDArray[np.bool_]) -> Category:
        by_seed = self.weights[:, rows].mean(1, dtype=np.float64)
        return Category(
            name=readable(name),
            count=int(rows.sum()),
            liked=float(self.data.source.label.cpu().numpy()[rows].mean()),
            weight=float(by_seed.mean()),
            spread=float(by_seed.std(ddof=1)) if len(by_seed) > 1 else None,
        )

    @property
    def one_category(self) -> bool:
        """Whether there is nothing to compare by category."""
        return self.data.source_items.num_categories == 1

    @cached_property
    def histogram(self) -> tuple[Bin, ...]:
        """Bars from 0, or the lowest weight, to 2, or what nearly all weights are below."""
        low = min(0.0, float(self.mean.min()))
        high = max(2.0, float(np.quantile(self.mean, 0.995)))
        counts, ends = np.histogram(np.minimum(self.mean, high), bins=_BINS, range=(low, high))
        pairs = zip(ends[:-1].tolist(), ends[1:].tolist(), counts.tolist(), strict=True)
        return tuple(Bin(*values) for values in pairs)

    @cached_property
    def extremes(self) -> dict[str, tuple[Behaviour, ...]]:
        """The behaviours of the highest and of the lowest weight."""
        order = np.argsort(self.mean, kind="stable")
        num = min(_EXTREMES, len(order) // 2)
        chosen = {"highest": order[::-1][:num].tolist(), "lowest": order[:num].tolist()}
        ids = self.data.source_items.ids
        item = self.data.source.item.cpu().numpy()
        known = self.titles({str(ids[item[row]]) for rows in chosen.values() for row in rows})
        return {
            which: tuple(self._behaviour(row, known) for row in rows)
            for which, rows in chosen.items()
        }

    def _behaviour(self, row: int, titles: Mapping[str, str]) -> Behaviour:
        items, rows = self.data.source_items, self.data.source
        item = int(rows.item[row])
        item_id = str(items.ids[item])
        title = titles.get(item_id, "")
        return Behaviour(
            weight=float(self.mean[row]),
            item=readable(title or item_id),
            item_id=readable(item_id, 40) if title else "",
            category=readable(items.category_names[int(items.category[item])], 60),
            user=readable(str(self.data.user_ids[int(rows.user[row])]), 40),
            liked=bool(rows.label[row] > 0.5),
        )

    def tied(self, which: str) -> int:
        """How many behaviours that are not shown have the same weight as the last one that is."""
        shown = self.extremes[which]
        return int((self.mean == shown[-1].weight).sum()) - sum(
            one.weight == shown[-1].weight for one in shown
        )
