"""Figure 3: mean learned weight by source category."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cdr.paper.learned_weights import Floats, Weighted, learned_weights, mean_by
from cdr.paper.study import Cell, Results, Study, variants
from cdr.report import Document, Picture, Sheet, plots, sheet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_MOST = 40  # bars of one panel
_FEWEST = 20  # behaviours of a category that gets a bar where there are too many categories


@dataclass(frozen=True)
class Categories:
    """Mean weight of each source category, the highest first.

    Attributes:
        spread: standard deviation over seeds; 0 for one.
        count: source behaviours to train on.
        relevant: whether the category is truly relevant, where that is known.
    """

    title: str
    name: tuple[str, ...]
    mean: Floats
    spread: Floats
    count: NDArray[np.int64]
    relevant: NDArray[np.bool_] | None


def by_category(title: str, seeds: list[Weighted]) -> Categories:
    """Average weights by category; data of seeds other than the first are the same.

    Args:
        title: of the panel.
        seeds: data and weights of each seed.
    """
    data = seeds[0][0]
    items = data.source_items
    category = items.category[data.source.item].numpy()
    count = np.bincount(category, minlength=items.num_categories)
    kept = np.flatnonzero(count)
    means = np.stack([mean_by(category, w, items.num_categories)[kept] for _, w in seeds])
    order = np.argsort(-means.mean(0), kind="stable")
    relevant = None
    if data.relevant is not None:
        share = mean_by(category, data.relevant.numpy(), items.num_categories)
        relevant = (share[kept] > 0.5)[order]
    return Categories(
        title,
        tuple(items.category_names[i] for i in kept[order]),
        means.mean(0)[order],
        (means.std(0, ddof=1) if len(seeds) > 1 else np.zeros(len(kept)))[order],
        count[kept][order],
        relevant,
    )


def document(results: Results) -> Document:
    """Mean weight of each source category."""
    found = []
    for cell, title, seeds in learned_weights(results):
        seeds = list(seeds)
        # Every seed of a generator has categories of its own.
        found.append((cell, by_category(title, seeds[:1] if cell.scenario.generated else seeds)))
    notes = [_category_sentence(c) for _, c in found]
    if any(cell.scenario.generated for cell, _ in found):
        notes.append("Generated data: of seed 0, since each seed has categories of its own.")
    return Document(
        results.study.title,
        pictures=(_picture([categories for _, categories in found]),),
        notes=tuple(notes),
        values=tuple(line for cell, categories in found for line in _values(cell, categories)),
        appendix=(_sheet([categories for _, categories in found]),),
    )


def _picture(found: list[Categories]) -> Picture:
    """Bars, a panel for each scenario and model."""
    columns = min(2, len(found))
    shown = [_bars(categories) for categories in found]
    height = 0.9 + 0.175 * max(map(len, shown))

    def draw(figure: Figure) -> None:
        axes = plots.panels(figure, len(found), columns)
        for panel, categories, places in zip(axes, found, shown, strict=True):
            _draw_categories(panel, categories, places)

    caption = "Mean learned weight by source category; at the right the number of behaviours."
    return Picture("figure3", caption, draw, height * -(-len(found) // columns))


def _values(cell: Cell, c: Categories) -> list[dict[str, object]]:
    """A line of the csv file for each category."""
    return [
        {
            "scenario": str(cell.scenario),
            "model": cell.model,
            "category": c.name[i],
            "mean_weight": float(c.mean[i]),
            "std_over_seeds": float(c.spread[i]),
            "behaviours": int(c.count[i]),
            "relevant": None if c.relevant is None else bool(c.relevant[i]),
        }
        for i in range(len(c.name))
    ]


def _sheet(found: list[Categories]) -> Sheet:
    """The categories that have a bar."""
    heads = ("scenario", "category", "mean weight", "behaviours")
    rows = [
        (c.title, c.name[i], f"{c.mean[i]:.3f}", f"{c.count[i]:,}") for c in found for i in _bars(c)
    ]
    return sheet(heads, rows, left=2)


def _bars(categories: Categories) -> list[int]:
    """The categories that get a bar: where there are too many, the highest and the lowest."""
    if len(categories.name) <= _MOST:
        return list(range(len(categories.name)))
    frequent = np.flatnonzero(categories.count >= _fewest(categories)).tolist()
    if len(frequent) <= _MOST:
        return frequent
    return [*frequent[: _MOST // 2], *frequent[-_MOST // 2 :]]


def _fewest(categories: Categories) -> int:
    """Behaviours of a category that gets a bar, where there are too many categories."""
    # Fewer than usual where too few categories have as many.
    return min(_FEWEST, int(np.sort(categories.count)[-_MOST]))


def _draw_categories(panel: Axes, c: Categories, places: list[int]) -> None:
    y = np.arange(len(places))
    known = c.relevant is not None
    colors = [plots.COLORS[0] if not known or c.relevant[i] else plots.COLORS[4] for i in places]  # type: ignore[index]
    error = c.spread[places] if c.spread.any() else None
    style = {"ecolor": plots.GREY, "elinewidth": 1.0}
    panel.barh(y, c.mean[places], height=0.75, color=colors, xerr=error, error_kw=style)
    panel.set_yticks(y, [_cut(c.name[i]) for i in places], size=7.5)
    panel.set_ylim(len(places) - 0.4, -0.6)
    ends = c.mean[places] + (0.0 if error is None else error)
    panel.set_xlim(0.0, 1.2 * float(ends.max()))
    for place, i in enumerate(places):
        panel.annotate(
            f"{c.count[i]:,}",
            (ends[place], place),
            (3, 0),
            textcoords="offset points",
            va="center",
            size=7.0,
            color=plots.GREY,
            bbox={"fc": "white", "ec": "none", "pad": 0.5},
            zorder=3.0,
        )
    # By the counts, a category's mean is worth what it is worth: the overall mean is of behaviours.
    panel.axvline(float(np.average(c.mean, weights=c.count)), color="black", ls=":", lw=1.2)
    panel.set_title(c.title, loc="left")
    panel.set_xlabel("mean weight (dotted: of all behaviours)")
    if known:
        from matplotlib.patches import Patch

        legend = [Patch(color=plots.COLORS[0], label="relevant")]
        legend.append(Patch(color=plots.COLORS[4], label="not relevant"))
        panel.legend(handles=legend, frameon=False, fontsize=8.0, loc="lower right")


def _cut(name: str) -> str:
    return name if len(name) <= 28 else name[:27] + "…"


def _category_sentence(c: Categories) -> str:
    if len(c.name) == 1:
        return f"{c.title}: the source has one category only, so that there is nothing to compare."
    if c.relevant is not None:
        num = int(c.relevant.sum())
        first = int(c.relevant[:num].sum())
        high, low = (np.average(c.mean[k], weights=c.count[k]) for k in (c.relevant, ~c.relevant))
        return (
            f"{c.title}: relevant categories have a mean weight of {high:.3f}, the others of "
            f"{low:.3f}; {first} of the {num} relevant ones are among the {num} highest."
        )
    places = _bars(c)
    highest = ", ".join(f"{c.name[i]} ({c.mean[i]:.2f})" for i in places[:3])
    lowest = ", ".join(f"{c.name[i]} ({c.mean[i]:.2f})" for i in places[::-1][:3])
    several = len(places) < len(c.name)
    left_out = f", of those with {_fewest(c)} behaviours or more" if several else ""
    return f"{c.title}: highest{left_out}: {highest}; lowest: {lowest}."


STUDY = Study(
    name="figure3",
    title="Mean weight by source category",
    about="mean weight by source category",
    # The weights of a search: those of a single training also move by chance.
    methods=variants("search"),
    models=("minet",),
    document=document,
    scenarios={
        "amazon": ("amazon:Books:Movies_and_TV", "amazon:Books:Toys_and_Games"),
        "amazon5": ("amazon5:Beauty:Toys_and_Games",),
        "epinions": ("epinions:others:4",),
    },
)
