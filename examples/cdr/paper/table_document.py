"""The document of a table of results, with its differences as a plot and the paper's table."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cdr.models import MODELS
from cdr.paper.baselines import about_untrained, untrained
from cdr.paper.result_table import Entry, Table, assemble
from cdr.paper.study import Results, Study
from cdr.report import Document, Picture, Sheet, percent, plots
from cdr.training import variant_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def table_document(results: Results) -> Document:
    """The table of a study."""
    more = untrained(results)
    shown = document_of(assemble(results.study, results.runs, more), results.study)
    return replace(shown, notes=(*shown.notes, *about_untrained(more)))


def document_of(table: Table, study: Study) -> Document:
    """A table with its plot and its notes; the paper's own table where nothing stands beside it."""
    appendix: tuple[Sheet, ...] = ()
    if study.printed and not any(entry.printed for entry in table.entries):
        appendix = (_printed(study),)
    pictures = tuple(differences(table))
    return Document(table.title, table.sheets(), pictures, table.legend(), table.values(), appendix)


def differences(table: Table) -> list[Picture]:
    """Differences to the table's reference, a panel for each scenario; none if none is known."""
    compared = [e for e in table.entries if e.comparison is not None]
    scenarios = list(dict.fromkeys(e.cell.scenario for e in compared))
    labels = list(dict.fromkeys(e.beside for e in compared))
    if not compared:
        return []
    columns = min(3, len(scenarios))
    caption = f"AUC − that of {table.reference}, with a 95 % interval over users"

    def draw(figure: Figure) -> None:
        axes = plots.panels(figure, len(scenarios), columns, share_axes=True)
        for panel, scenario in zip(axes, scenarios, strict=True):
            panel.axvline(0.0, color=plots.GREY, lw=1.0)
            for e in compared:
                if e.cell.scenario == scenario:
                    _interval(panel, e, labels.index(e.beside))
            panel.set_title(scenario.heading, loc="left")
            panel.set_yticks(range(len(labels)), labels)
            panel.set_ylim(len(labels) - 0.5, -0.5)
            panel.locator_params(axis="x", nbins=5)
            panel.tick_params(axis="x", labelbottom=True)
            panel.grid(axis="x", alpha=0.3, lw=0.6)
        figure.supxlabel(caption, size=9.0)

    rows = -(-len(scenarios) // columns)
    text = f"{caption}; filled where the interval leaves out zero."
    return [Picture("differences", text, draw, 0.7 + rows * (0.6 + 0.26 * len(labels)))]


def _interval(panel: Axes, entry: Entry, place: int) -> None:
    c = entry.comparison
    assert c is not None
    sure = c.low > 0 or c.high < 0
    color = plots.COLORS[0] if sure else plots.GREY
    panel.plot([c.low, c.high], [place, place], color=color)
    panel.plot(c.difference, place, "o", color=color, mfc=color if sure else "white")


def _printed(study: Study) -> Sheet:
    """The paper's table, for reference."""
    cells = study.printed
    scenarios = list(dict.fromkeys(scenario for scenario, _, _ in cells))
    relative = any(printed.improvement is not None for printed in cells.values())
    heads = ("AUC", "RelaImpr") if relative else ("AUC",)
    rows = []
    for model, variant in dict.fromkeys((model, variant) for _, model, variant in cells):
        row = [MODELS[model].label + variant_label(variant)]
        for scenario in scenarios:
            printed = cells[scenario, model, variant]
            row += [printed.text, percent(printed.improvement)] if relative else [printed.text]
        rows.append(tuple(row))
    groups = (("", ("model",)), *((scenario, heads) for scenario in scenarios))
    return Sheet(f"As the paper prints it (Table {study.name[-1]})", groups, tuple(rows))
