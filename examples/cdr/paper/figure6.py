"""Figure 6: single source behaviours with low and with high weights for their user."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cdr.paper.cases import SHOWN, Case, cases, numbered, user_specific
from cdr.paper.learned_weights import Floats, learned_weights
from cdr.paper.study import Cell, Results, Study, variants
from cdr.report import Document, Picture, plots
from cdr.runs import Source, item_titles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Panel:
    """The cases of one scenario and model.

    Attributes:
        cell: Scenario, model and method.
        title: Of the panel.
        own: User-specific weight of each source behaviour.
        cases: The extremes among them.
    """

    cell: Cell
    title: str
    own: Floats
    cases: list[Case]


def document(results: Results) -> Document:
    """Cases of each scenario, of its first seed, and where they lie among all weights."""
    found = []
    for cell, title, seeds in learned_weights(results):
        data, weights = next(iter(seeds))
        source = results.sources[cell.scenario]

        def titles(items: Collection[str], source: Source = source) -> Mapping[str, str]:
            return item_titles(source, items)

        chosen = cases(data, weights, titles)
        found.append(Panel(cell, title, user_specific(data, weights), chosen))
    sheets = tuple(
        case.sheet(f"{one.title}, case {i}: {case.kind}")
        for one in found
        for i, case in enumerate(one.cases, 1)
    )
    values = tuple(
        _values(one.cell, i, case) for one in found for i, case in enumerate(one.cases, 1)
    )
    notes = [_sentence(one.title, one.own) for one in found]
    notes.append(
        "User-specific weight: the learned weight over the mean weight of the item's category, of "
        f"the first seed. Histories: the last {SHOWN} positives before the behaviour."
    )
    return Document(results.study.title, sheets, (_picture(found),), tuple(notes), values)


def _picture(found: list[Panel]) -> Picture:
    """A histogram of all weights with a line for each case."""
    columns = min(2, len(found))

    def draw(figure: Figure) -> None:
        axes = plots.panels(figure, len(found), columns)
        for panel, one in zip(axes, found, strict=True):
            panel.hist(one.own, bins=60, color=plots.COLORS[5])
            for place, case in enumerate(one.cases):
                _mark(panel, place, case)
            panel.set_yscale("log")
            panel.set_title(one.title, loc="left", pad=22.0)
            panel.set_xlabel("weight ÷ mean weight of its category")
            panel.set_ylabel("source behaviours")

    caption = "User-specific weights of all source behaviours, and those of the cases by number."
    return Picture("figure6", caption, draw, 0.3 + 2.9 * -(-len(found) // columns))


def _mark(panel: Axes, place: int, case: Case) -> None:
    """A line with a number at the weight of a case."""
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


def _values(cell: Cell, number: int, case: Case) -> dict[str, object]:
    """A line of the csv file."""
    return {
        "scenario": str(cell.scenario),
        "model": cell.model,
        "case": number,
        "kind": case.kind,
        "user_specific_weight": case.own,
        "weight": case.weight,
        "item": case.item,
        "positive": case.label,
        "source_history": numbered(case.source_history),
        "target_history": numbered(case.target_history),
    }


def _sentence(title: str, own: Floats) -> str:
    low, high = np.quantile(own, (0.05, 0.95))
    return (
        f"{title}: nine of ten behaviours are weighted between {low:.2f} and {high:.2f} times the "
        f"mean of their category; the extremes are {own.min():.2f} and {own.max():.2f}."
    )


STUDY = Study(
    name="figure6",
    title="Cases with low and high user-specific weights",
    about="behaviours with low and with high user-specific weights",
    methods=variants("search"),
    models=("minet",),
    document=document,
    scenarios={
        "amazon": ("amazon:Books:Toys_and_Games",),
        "amazon5": ("amazon5:Beauty:Toys_and_Games",),
        "epinions": ("epinions:others:4",),
    },
)
