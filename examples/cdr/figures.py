"""The figures: numbers first, then a picture of them, and a sentence on what is seen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cdr import plots
from cdr.models import MODELS
from cdr.tables import Entry, Table, signed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def difference_chart(table: Table) -> tuple[plots.Draw, float]:
    """Differences to the table's reference with their intervals, a panel for each scenario.

    Returns:
        What draws them, and the height it needs.
    """
    compared = [e for e in table.entries if e.comparison is not None]
    scenarios = list(dict.fromkeys(e.cell.scenario for e in compared))
    labels = list(dict.fromkeys(e.label for e in compared))
    columns = min(3, len(scenarios))
    rows = -(-len(scenarios) // columns)

    def draw(figure: Figure) -> None:
        axes = plots.panels(figure, len(scenarios), columns, sharex=True, sharey=True)
        for panel, scenario in zip(axes, scenarios, strict=True):
            panel.axvline(0.0, color=plots.GREY, lw=1.0)
            for e in compared:
                if e.cell.scenario == scenario:
                    _interval(panel, e, labels.index(e.label))
            panel.set_title(scenario.heading, loc="left")
            panel.set_yticks(range(len(labels)), labels)
            panel.set_ylim(len(labels) - 0.5, -0.5)
            panel.grid(axis="x", alpha=0.3, lw=0.6)
        label = f"AUC − that of {table.reference}, with a 95 % interval over users"
        figure.supxlabel(label, size=9.0)

    return draw, 0.9 + rows * (0.5 + 0.26 * len(labels))


def _interval(panel: Axes, entry: Entry, place: int) -> None:
    c = entry.comparison
    assert c is not None
    sure = c.low > 0 or c.high < 0
    color = plots.COLORS[0] if sure else plots.GREY
    panel.plot([c.low, c.high], [place, place], color=color)
    panel.plot(c.difference, place, "o", color=color, mfc=color if sure else "white")


def interval_chart(table: Table) -> tuple[plots.Draw, float]:
    """AUC against the interval of outer steps, the base model as a dotted line (Figure 5)."""
    groups: dict[tuple[str, str], list[Entry]] = {}
    for e in table.entries:
        label = MODELS[e.cell.model].label
        groups.setdefault((e.cell.scenario.heading, label), []).append(e)
    headings = list(dict.fromkeys(heading for heading, _ in groups))
    models = list(dict.fromkeys(model for _, model in groups))
    columns = min(2, len(headings))

    def draw(figure: Figure) -> None:
        axes = plots.panels(figure, len(headings), columns)
        for panel, heading in zip(axes, headings, strict=True):
            for model in models:
                _by_interval(panel, groups.get((heading, model), []), model, models.index(model))
            panel.set_title(heading, loc="left")
            panel.set_xlabel("inner steps between two outer steps")
            panel.set_ylabel("test AUC, mean over seeds")
            panel.grid(alpha=0.3, lw=0.6)
            panel.legend(frameon=False, fontsize=8.0)

    return draw, 0.3 + 3.0 * -(-len(headings) // columns)


def _alike(one: Entry, other: Entry) -> bool:
    return (one.cell.scenario, one.cell.model) == (other.cell.scenario, other.cell.model)


def _interval_of(entry: Entry) -> int:
    return int(dict(entry.cell.method.changes)["outer.interval"])


def _by_interval(panel: Axes, entries: list[Entry], model: str, place: int) -> None:
    learned = [e for e in entries if e.cell.method.changes]
    # One place for each, for a logarithm would crowd the long ones.
    x = range(len(learned))
    color, marker = plots.COLORS[place], plots.MARKERS[place]
    for e in entries:
        if not e.cell.method.changes:
            panel.axhline(e.mean, color=color, ls=":", label=f"{model} w/o ours")
    if not learned:
        return
    error = [e.std / np.sqrt(len(e.auc)) if e.std is not None else 0.0 for e in learned]
    y = [e.mean for e in learned]
    panel.errorbar(x, y, error, color=color, marker=marker, capsize=2.5, label=f"{model}+ours")
    panel.set_xticks(x, [str(_interval_of(e)) for e in learned])


def interval_sentences(table: Table) -> list[str]:
    """How many intervals do better than the base model, and the best of them."""
    told = []
    for base in table.entries:
        if base.cell.method.changes:
            continue
        learned = [e for e in table.entries if _alike(e, base) and e.cell.method.changes]
        if not learned:
            continue
        better = sum(e.mean > base.mean for e in learned)
        best = max(learned, key=lambda e: e.mean)
        told.append(
            f"{base.cell.scenario.heading}, {base.label}: {better} of {len(learned)} intervals "
            f"have a higher mean AUC than the base model ({base.mean:.4f}); the highest is "
            f"{best.mean:.4f} ({signed(best.mean - base.mean)}) at {_interval_of(best)}."
        )
    told.append("Error bars: standard error over seeds. Dotted: the base model.")
    return told
