"""Figure 4: mean learned weight by the lengths of the user's histories."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cdr.paper.learned_weights import Floats, Weighted, learned_weights, mean_by
from cdr.paper.study import Cell, Results, Study, variants
from cdr.report import Document, Picture, Sheet, plots, sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_BINS = 12


@dataclass(frozen=True)
class Lengths:
    """Users of one scenario and model, in bins by the difference of their history lengths.

    Attributes:
        cell: Scenario, model and method.
        title: Of the panel.
        difference: Source less target training behaviours of each user, [users].
        weight: Mean weight of each user's source behaviours, [users].
        x: Mean difference in each bin, [bins].
        y: Mean weight in each bin, [bins].
        error: Standard error of that, [bins].
        num: Users in each bin, [bins].
    """

    cell: Cell
    title: str
    difference: Floats
    weight: Floats
    x: Floats
    y: Floats
    error: Floats
    num: NDArray[np.int64]


def document(results: Results) -> Document:
    """Mean weight against how many more source than target behaviours a user has."""
    found = []
    for cell, title, seeds in learned_weights(results):
        difference, weight = _by_user(list(seeds), pooled=cell.scenario.generated)
        found.append(Lengths(cell, title, difference, weight, *_binned(difference, weight)))
    return Document(
        results.study.title,
        (_sheet(found),),
        (_picture(found),),
        tuple(map(_length_sentence, found)),
        tuple(line for one in found for line in _values(one)),
    )


def _picture(found: list[Lengths]) -> Picture:
    """A line with error bars, a panel for each scenario and model."""
    columns = min(2, len(found))

    def draw(figure: Figure) -> None:
        axes = plots.panels(figure, len(found), columns)
        for panel, one in zip(axes, found, strict=True):
            panel.errorbar(one.x, one.y, one.error, color=plots.COLORS[0], marker="o", capsize=2.5)
            panel.set_title(one.title, loc="left")
            panel.set_xlabel("source − target behaviours of the user (training)")
            panel.set_ylabel("mean weight of the user's\nsource behaviours")
            panel.grid(alpha=0.3, lw=0.6)

    caption = "Mean learned weight of a user's source behaviours, with standard error over users."
    return Picture("figure4", caption, draw, 0.3 + 2.7 * -(-len(found) // columns))


def _values(one: Lengths) -> list[dict[str, object]]:
    """A line of the csv file for each bin."""
    return [
        {
            "scenario": str(one.cell.scenario),
            "model": one.cell.model,
            "source_minus_target": float(x),
            "mean_weight": float(y),
            "standard_error": float(error),
            "users": int(num),
        }
        for x, y, error, num in zip(one.x, one.y, one.error, one.num, strict=True)
    ]


def _sheet(found: list[Lengths]) -> Sheet:
    heads = ("scenario", "source − target", "mean weight", "±", "users")
    rows = [
        (one.title, f"{x:.1f}".replace("-", "−"), f"{y:.3f}", f"{error:.3f}", f"{num:,}")
        for one in found
        for x, y, error, num in zip(one.x, one.y, one.error, one.num, strict=True)
    ]
    return sheet(heads, rows)


def _by_user(seeds: list[Weighted], pooled: bool) -> tuple[Floats, Floats]:
    """Source − target training behaviours and mean weight of each user who has a source behaviour.

    Args:
        seeds: data and weights of each seed.
        pooled: whether users of different seeds are different users.
    """
    differences, weights = [], []
    for data, weight in seeds:
        source = data.source_offsets.diff().numpy()
        target = np.bincount(data.train.user.numpy(), minlength=data.num_users)
        mean = mean_by(data.source.user.numpy(), weight, data.num_users)
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
    mean = mean_by(place, y, len(num))
    variance = mean_by(place, (y - mean[place]) ** 2, len(num))
    return mean_by(place, x, len(num)), mean, np.sqrt(variance / np.maximum(num - 1, 1)), num


def _length_sentence(one: Lengths) -> str:
    from scipy.stats import spearmanr

    if len(one.y) < 2 or not np.ptp(one.weight):
        return f"{one.title}: all users have about the same lengths or weights."
    rank = spearmanr(one.difference, one.weight)
    return (
        f"{one.title}: the mean weight goes from {one.y[0]:.3f} for the users with the fewest "
        f"source behaviours against target ones to {one.y[-1]:.3f} for those with the most; rank "
        f"correlation over {len(one.weight):,} users {rank.statistic:+.2f} (p {_p(rank.pvalue)})."
    )


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


STUDY = Study(
    name="figure4",
    title="Mean weight by length of the histories",
    about="mean weight by length of the user's histories",
    methods=variants("search"),
    models=("minet",),
    document=document,
    scenarios={
        "amazon": ("amazon:Books:Movies_and_TV", "amazon:Books:Toys_and_Games"),
        "amazon5": ("amazon5:Beauty:Toys_and_Games",),
        "epinions": ("epinions:3:4",),
    },
)
