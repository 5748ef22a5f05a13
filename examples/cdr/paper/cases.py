"""Single source behaviours that were weighted low or high for their user (Figure 6)."""

from __future__ import annotations

import html
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from cdr.data import amazon, tables
from cdr.data.schema import OTHERS, CrossDomainData
from cdr.models import MODELS
from cdr.paper.scenarios import Scenario
from cdr.paper.studies import Cell
from cdr.report import plots
from cdr.report.document import Document, Sheet, sheet
from cdr.report.plots import Picture
from cdr.runs.grid import Run
from cdr.runs.runner import Source

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_EACH = 2  # cases of low and of high weight
_SHOWN = 8  # behaviours of a history
_LEAST = 3  # behaviours in both histories for a case to say something

Floats = NDArray[np.float64]
Titles = Callable[[Collection[str]], Mapping[str, str]]
"""From ids of items to the titles that are known."""


@dataclass(frozen=True)
class Case:
    """One source behaviour.

    Attributes:
        kind: "low" or "high".
        own: its weight over the mean weight of its category: what is the user's own in it.
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
        """To be read."""
        rows = [
            ("weight", f"{self.weight:.4f}"),
            ("source behaviour", f"{self.item}, {'positive' if self.label else 'negative'}"),
            ("source history", _numbered(self.source_history)),
            ("target history", _numbered(self.target_history)),
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
    filled = [h.gather(rows, _SHOWN)[1].sum(1) for h in (data.source_history, data.target_history)]
    length = torch.minimum(*filled).numpy()
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
    known = titles({_bare(name) for items in shown.values() for part in items for name, _ in part})
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


def figure6(runs: Mapping[Cell, Mapping[int, Run]], sources: Mapping[Scenario, Source]) -> Document:
    """Cases of each scenario, of its first seed, and where they lie among all weights."""
    found = []
    for cell, several in runs.items():
        for seed, run in list(several.items())[:1]:
            if run.weights is not None:
                source = sources[cell.scenario]
                data = source.load(seed)
                title = f"{cell.scenario.heading} · {MODELS[cell.model].label}"
                chosen = cases(data, run.weights, partial(item_titles, source))
                found.append((cell, title, user_specific(data, run.weights), chosen))
    columns = min(2, len(found))

    def draw(figure: Figure) -> None:
        axes = plots.panels(figure, len(found), columns)
        for panel, (_, title, own, chosen) in zip(axes, found, strict=True):
            panel.hist(own, bins=60, color=plots.COLORS[5])
            for place, case in enumerate(chosen):
                color = plots.COLORS[1] if case.kind == "low" else plots.COLORS[0]
                panel.axvline(case.own, color=color, lw=1.2)
                panel.annotate(
                    str(place + 1),
                    (case.own, 1.0),
                    (0, 2 + 10 * (place % 2)),
                    xycoords=("data", "axes fraction"),
                    textcoords="offset points",
                    ha="center",
                    color=color,
                )
            panel.set_yscale("log")
            panel.set_title(title, loc="left", pad=22.0)
            panel.set_xlabel("weight ÷ mean weight of its category")
            panel.set_ylabel("source behaviours")

    caption = "User-specific weights of all source behaviours, and those of the cases by number."
    picture = Picture("figure6", caption, draw, 0.3 + 2.9 * -(-len(found) // columns))
    sheets = tuple(
        case.sheet(f"{title}, case {i}: {case.kind}")
        for _, title, _, chosen in found
        for i, case in enumerate(chosen, 1)
    )
    values = tuple(
        {
            "scenario": str(cell.scenario),
            "model": cell.model,
            "case": i,
            "kind": case.kind,
            "user_specific_weight": case.own,
            "weight": case.weight,
            "item": case.item,
            "positive": case.label,
            "source_history": _numbered(case.source_history),
            "target_history": _numbered(case.target_history),
        }
        for cell, _, _, chosen in found
        for i, case in enumerate(chosen, 1)
    )
    notes = [_sentence(title, own) for _, title, own, _ in found]
    notes.append(
        "User-specific weight: the learned weight over the mean weight of the item's category, of "
        f"the first seed. Histories: the last {_SHOWN} positives before the behaviour."
    )
    title = "Cases with low and high user-specific weights"
    return Document(title, sheets, (picture,), tuple(notes), values)


def item_titles(source: Source, items: Collection[str]) -> dict[str, str]:
    """The titles of some items by id, of the data sets that have them."""
    given = dict(source.options)
    if source.spec == "amazon":
        return amazon.titles(given["root"], f"{given['source']}+{given['target']}", items)
    if source.spec != "amazon5":
        return {}
    path = Path(given["root"]) / "amazon5" / "items.csv.gz"
    table = tables.read(path, ("item",), optional=("title",))
    if "title" not in table.column_names:
        return {}
    table = table.filter(pc.is_in(table["item"], value_set=pa.array(list(items), pa.string())))
    pairs = zip(table["item"].to_pylist(), table["title"].to_pylist(), strict=True)
    # Titles were taken from web pages.
    return {item: html.unescape(title) for item, title in pairs if title}


def _shown(data: CrossDomainData, row: int) -> tuple[list[tuple[str, str]], ...]:
    """Id and category of a source behaviour's item, and of those of its user's two histories."""
    behaviour = data.source.item[row : row + 1]
    parts = [(data.source_items, behaviour)]
    for items, history in (
        (data.source_items, data.source_history),
        (data.target_items, data.target_history),
    ):
        found, mask = history.gather(torch.tensor([row]), _SHOWN)
        parts.append((items, found[mask]))
    return tuple(
        [
            (str(items.ids[item]), items.category_names[int(items.category[item])])
            for item in found.tolist()
        ]
        for items, found in parts
    )


def _bare(name: str) -> str:
    """The id without the domain's name, which items of joint sources have in front."""
    return name.rpartition("/")[2]


def _named(name: str, category: str, titles: Mapping[str, str]) -> str:
    """Category and title, as far as they are known; else the item's id."""
    title = titles.get(_bare(name), "")
    if category == OTHERS:
        return title or name
    category = f"category {category}" if category.isdigit() else category
    return f"{category} ({title})" if title else category


def _numbered(history: tuple[str, ...]) -> str:
    return "; ".join(f"{i}. {item}" for i, item in enumerate(history, 1)) or "–"


def _sentence(title: str, own: Floats) -> str:
    low, high = np.quantile(own, (0.05, 0.95))
    return (
        f"{title}: nine of ten behaviours are weighted between {low:.2f} and {high:.2f} times the "
        f"mean of their category; the extremes are {own.min():.2f} and {own.max():.2f}."
    )
