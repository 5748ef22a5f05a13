"""Figure 5: AUC by the interval of outer steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cdr.models import MODELS
from cdr.paper.result_table import Entry, Table, assemble
from cdr.paper.study import Method, Results, Study, variants
from cdr.report import Document, Picture, plots, signed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INTERVALS = (5, 10, 20, 100, 200, 300, 400, 500)
"""The paper's, and two shorter ones."""


def document(results: Results) -> Document:
    """The plot, and the table of its numbers."""
    table = assemble(results.study, results.runs)
    notes = (*interval_sentences(table), *table.legend())
    return Document(table.title, table.sheets(), (intervals(table),), notes, table.values())


def intervals(table: Table) -> Picture:
    """AUC against the interval of outer steps, the base model as a dotted line (Figure 5)."""
    scenarios = list(dict.fromkeys(e.cell.scenario for e in table.entries))
    models = list(dict.fromkeys(e.cell.model for e in table.entries))
    lengths = sorted({_interval_of(e) for e in table.entries if e.cell.method.changes})
    columns = min(2, len(scenarios))

    def draw(figure: Figure) -> None:
        axes = plots.panels(figure, len(scenarios), columns)
        for panel, scenario in zip(axes, scenarios, strict=True):
            for place, model in enumerate(models):
                _without(panel, _base(table, scenario, model), place)
                _by_interval(panel, _learned(table, scenario, model), lengths, place)
            # One place for each: a logarithm would crowd the long ones.
            panel.set_xticks(range(len(lengths)), map(str, lengths))
            panel.set_title(scenario.heading, loc="left")
            panel.set_xlabel("inner steps between two outer steps")
            panel.set_ylabel("test AUC")
            panel.grid(alpha=0.3, lw=0.6)
        # Of all panels: what failed in one of them is missing there.
        shown = [panel.get_legend_handles_labels() for panel in axes]
        handles = {
            name: line for lines, names in shown for line, name in zip(lines, names, strict=True)
        }
        figure.legend(
            handles.values(),
            handles.keys(),
            loc="outside upper center",
            ncols=4,
            frameon=False,
            fontsize=8.5,
        )

    text = "Mean test AUC with standard error over seeds; dotted: the base model."
    return Picture("figure5", text, draw, 0.5 + 2.9 * -(-len(scenarios) // columns))


def interval_sentences(table: Table) -> list[str]:
    """How many intervals do better than the base model, and the best of them."""
    notes = []
    for base in (e for e in table.entries if not e.cell.method.changes):
        learned = _learned(table, base.cell.scenario, base.cell.model)
        if learned:
            better = sum(e.mean > base.mean for e in learned)
            best = max(learned, key=lambda e: e.mean)
            notes.append(
                f"{base.cell.scenario.heading}, {base.label}: {better} of {len(learned)} intervals "
                f"have a higher mean AUC than the base model ({base.mean:.4f}); the highest is "
                f"{best.mean:.4f} ({signed(best.mean - base.mean)}) at {_interval_of(best)}."
            )
    return notes


def _base(table: Table, scenario: object, model: str) -> list[Entry]:
    return [e for e in _of(table, scenario, model) if not e.cell.method.changes]


def _learned(table: Table, scenario: object, model: str) -> list[Entry]:
    return [e for e in _of(table, scenario, model) if e.cell.method.changes]


def _of(table: Table, scenario: object, model: str) -> list[Entry]:
    return [e for e in table.entries if (e.cell.scenario, e.cell.model) == (scenario, model)]


def _interval_of(entry: Entry) -> int:
    return int(dict(entry.cell.method.changes)["outer.interval"])


def _without(panel: Axes, base: list[Entry], place: int) -> None:
    for e in base:
        panel.axhline(e.mean, color=plots.COLORS[place], ls=":", label=f"{e.label} w/o ours")


def _by_interval(panel: Axes, entries: list[Entry], lengths: list[int], place: int) -> None:
    if not entries:
        return
    x = np.array([lengths.index(_interval_of(e)) for e in entries])
    error = [0.0 if e.std is None else e.std / np.sqrt(len(e.auc)) for e in entries]
    # A little apart, so that the bars of two models do not hide each other.
    panel.errorbar(
        x + 0.06 * place,
        [e.mean for e in entries],
        error,
        color=plots.COLORS[place],
        marker=plots.MARKERS[place],
        capsize=2.5,
        label=f"{MODELS[entries[0].cell.model].label}+ours",
    )


STUDY = Study(
    name="figure5",
    title="Inner steps between two outer steps",
    about="AUC by the interval of outer steps",
    methods=(
        *variants("base"),
        *(
            Method(f"interval-{n}", f"+ours, interval {n}", "ours", (("outer.interval", n),))
            for n in INTERVALS
        ),
    ),
    models=("minet", "conet"),
    document=document,
    scenarios={
        "amazon": ("amazon:Books:Toys_and_Games", "amazon:Books:Electronics"),
        "amazon5": ("amazon5:Beauty:Toys_and_Games",),
        "epinions": ("epinions:3:4",),
    },
)
