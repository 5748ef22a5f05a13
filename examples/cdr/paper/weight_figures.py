"""The learned weights by category of the item and by lengths of the user's histories."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cdr.data.schema import CrossDomainData
from cdr.models import MODELS
from cdr.paper.scenarios import Scenario
from cdr.paper.studies import Cell
from cdr.report import plots
from cdr.report.document import Document, sheet
from cdr.report.plots import Picture
from cdr.runs.grid import Run
from cdr.runs.runner import Source

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST = 40  # bars of one panel
_FEWEST = 20  # behaviours of a category that gets a bar where there are too many categories
_BINS = 12

Floats = NDArray[np.float64]
Learned = Mapping[Cell, Mapping[int, Run]]


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


def by_category(title: str, seeds: list[tuple[CrossDomainData, NDArray[np.float32]]]) -> Categories:
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
    means = np.stack([_mean_by(category, w, items.num_categories)[kept] for _, w in seeds])
    order = np.argsort(-means.mean(0), kind="stable")
    relevant = None
    if data.relevant is not None:
        share = _mean_by(category, data.relevant.numpy(), items.num_categories)
        relevant = (share[kept] > 0.5)[order]
    return Categories(
        title,
        tuple(items.category_names[i] for i in kept[order]),
        means.mean(0)[order],
        (means.std(0, ddof=1) if len(seeds) > 1 else np.zeros(len(kept)))[order],
        count[kept][order],
        relevant,
    )


def figure3(runs: Learned, sources: Mapping[Scenario, Source]) -> Document:
    """Mean weight of each source category."""
    found = []
    for cell, title, seeds in _panels(runs, sources):
        seeds = list(seeds)
        # Every seed of a generator has categories of its own.
        found.append((cell, by_category(title, seeds[:1] if cell.scenario.generated else seeds)))
    columns = min(2, len(found))
    shown = [_bars(categories) for _, categories in found]
    height = 0.9 + 0.175 * max(map(len, shown))

    def draw(figure: Figure) -> None:
        axes = plots.panels(figure, len(found), columns)
        for panel, (_, categories), places in zip(axes, found, shown, strict=True):
            _draw_categories(panel, categories, places)

    caption = "Mean learned weight by source category; at the right the number of behaviours."
    picture = Picture("figure3", caption, draw, height * -(-len(found) // columns))
    values: tuple[dict[str, object], ...] = tuple(
        {
            "scenario": str(cell.scenario),
            "model": cell.model,
            "category": c.name[i],
            "mean_weight": float(c.mean[i]),
            "std_over_seeds": float(c.spread[i]),
            "behaviours": int(c.count[i]),
            "relevant": None if c.relevant is None else bool(c.relevant[i]),
        }
        for cell, c in found
        for i in range(len(c.name))
    )
    notes = [_category_sentence(c) for _, c in found]
    if any(cell.scenario.generated for cell, _ in found):
        notes.append("Generated data: of seed 0, since each seed has categories of its own.")
    heads = ("scenario", "category", "mean weight", "behaviours")
    rows = [
        (c.title, c.name[i], f"{c.mean[i]:.3f}", f"{c.count[i]:,}")
        for (_, c), places in zip(found, shown, strict=True)
        for i in places
    ]
    table = sheet(heads, rows, left=2)
    title = "Mean weight by source category"
    return Document(title, (), (picture,), tuple(notes), values, appendix=(table,))


def figure4(runs: Learned, sources: Mapping[Scenario, Source]) -> Document:
    """Mean weight against how many more source than target behaviours a user has."""
    found = []
    for cell, title, seeds in _panels(runs, sources):
        difference, weight = _by_user(list(seeds), pooled=cell.scenario.generated)
        found.append((cell, title, difference, weight, *_binned(difference, weight)))
    columns = min(2, len(found))

    def draw(figure: Figure) -> None:
        axes = plots.panels(figure, len(found), columns)
        for panel, (_, title, _, _, x, y, error, _) in zip(axes, found, strict=True):
            panel.errorbar(x, y, error, color=plots.COLORS[0], marker="o", capsize=2.5)
            panel.set_title(title, loc="left")
            panel.set_xlabel("source − target behaviours of the user (training)")
            panel.set_ylabel("mean weight of the user's\nsource behaviours")
            panel.grid(alpha=0.3, lw=0.6)

    caption = "Mean learned weight of a user's source behaviours, with standard error over users."
    picture = Picture("figure4", caption, draw, 0.3 + 2.7 * -(-len(found) // columns))
    notes = [_length_sentence(title, d, w, y) for _, title, d, w, _, y, _, _ in found]
    values = tuple(
        {
            "scenario": str(cell.scenario),
            "model": cell.model,
            "source_minus_target": float(x[i]),
            "mean_weight": float(y[i]),
            "standard_error": float(error[i]),
            "users": int(num[i]),
        }
        for cell, _, _, _, x, y, error, num in found
        for i in range(len(x))
    )
    heads = ("scenario", "source − target", "mean weight", "±", "users")
    rows = [
        (title, f"{a:.1f}".replace("-", "−"), f"{b:.3f}", f"{e:.3f}", f"{n:,}")
        for _, title, _, _, *binned in found
        for a, b, e, n in zip(*binned, strict=True)
    ]
    table = sheet(heads, rows)
    title = "Mean weight by length of the histories"
    return Document(title, (table,), (picture,), tuple(notes), values)


def _panels(
    runs: Learned, sources: Mapping[Scenario, Source]
) -> Iterator[tuple[Cell, str, Iterable[tuple[CrossDomainData, NDArray[np.float32]]]]]:
    """For each cell a title, and lazily the data and the weights of each seed."""
    for cell, several in runs.items():
        source = sources[cell.scenario]
        title = f"{cell.scenario.heading} · {MODELS[cell.model].label}"
        learned = {seed: run.weights for seed, run in several.items() if run.weights is not None}
        if learned:
            yield cell, title, ((source.load(seed), w) for seed, w in learned.items())


def _mean_by(group: NDArray[np.int64], values: NDArray[np.generic], num: int) -> Floats:
    """Mean of the values of each group; NaN for an empty one."""
    with np.errstate(invalid="ignore"):
        return np.bincount(group, values, minlength=num) / np.bincount(group, minlength=num)


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


def _by_user(
    seeds: list[tuple[CrossDomainData, NDArray[np.float32]]], pooled: bool
) -> tuple[Floats, Floats]:
    """Source − target training behaviours and mean weight of each user who has a source behaviour.

    Args:
        seeds: data and weights of each seed.
        pooled: whether users of different seeds are different users.
    """
    differences, weights = [], []
    for data, weight in seeds:
        source = data.source_offsets.diff().numpy()
        target = np.bincount(data.train.user.numpy(), minlength=data.num_users)
        mean = _mean_by(data.source.user.numpy(), weight, data.num_users)
        differences.append((source - target)[source > 0].astype(np.float64))
        weights.append(mean[source > 0])
    if pooled:
        return np.concatenate(differences), np.concatenate(weights)
    return differences[0], np.mean(weights, axis=0)


def _binned(x: Floats, y: Floats) -> tuple[Floats, Floats, Floats, NDArray[np.int64]]:
    """Mean x, mean y, its standard error and the number of users, in bins of about equal number."""
    edges = np.unique(np.quantile(x, np.linspace(0, 1, _BINS + 1)))
    place = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, max(len(edges) - 2, 0))
    _, place = np.unique(place, return_inverse=True)
    num = np.bincount(place)
    mean = _mean_by(place, y, len(num))
    variance = _mean_by(place, (y - mean[place]) ** 2, len(num))
    return _mean_by(place, x, len(num)), mean, np.sqrt(variance / np.maximum(num - 1, 1)), num


def _length_sentence(title: str, difference: Floats, weight: Floats, binned: Floats) -> str:
    from scipy.stats import spearmanr

    if len(binned) < 2 or not np.ptp(weight):
        return f"{title}: all users have about the same lengths or weights."
    rank = spearmanr(difference, weight)
    return (
        f"{title}: the mean weight goes from {binned[0]:.3f} for the users with the fewest source "
        f"behaviours against target ones to {binned[-1]:.3f} for those with the most; rank "
        f"correlation over {len(weight):,} users {rank.statistic:+.2f} (p {_p(rank.pvalue)})."
    )


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
