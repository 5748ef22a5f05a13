"""From what a command has trained to its tables, pictures and sentences."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from cdr.data.manifest import PAPER_STATISTICS, check, source_reading
from cdr.models import MODELS
from cdr.paper import printed as paper
from cdr.paper.cases import figure6
from cdr.paper.figures import differences, interval_sentences, intervals
from cdr.paper.scenarios import Scenario
from cdr.paper.studies import SEARCHED, STUDIES, Cell, Study, searched
from cdr.paper.tables import Runs, Table, assemble
from cdr.paper.weight_figures import figure3, figure4
from cdr.report.document import Document, Sheet, sheet
from cdr.report.rounded import percent
from cdr.runs.runner import Source
from cdr.training.variants import label


@dataclass(frozen=True)
class Results:
    """What a command has trained.

    Attributes:
        command: its name.
        sources: by scenario, in the order given.
        runs: by cell and seed.
    """

    command: str
    sources: Mapping[Scenario, Source]
    runs: Runs

    @property
    def study(self) -> Study:
        """What was to be trained."""
        return STUDIES[self.command]


def _table(results: Results) -> tuple[Table, Document]:
    table = assemble(results.command, results.study, results.runs)
    appendix: tuple[Sheet, ...] = ()
    if results.command in paper.TABLES and not any(e.printed for e in table.entries):
        appendix = (_printed(results.command),)
    pictures = tuple(differences(table))
    document = Document(
        table.title, table.sheets(), pictures, table.legend(), table.values(), appendix
    )
    return table, document


def _plain(results: Results) -> Document:
    return _table(results)[1]


def _generated(results: Results) -> Document:
    table, document = _table(results)
    return replace(document, notes=(*_recovered(table), *document.notes))


def _evidence(results: Results) -> Document:
    runs = {**results.runs}
    told = []
    for scenario in results.sources:
        for model in dict.fromkeys(cell.model for cell in runs):
            best = searched(results.runs, scenario, model)
            if best is None:
                continue
            cell, several, gammas = best
            runs[cell] = several
            chosen = dict(cell.method.changes)["inner.gamma"]
            values = ", ".join(f"{gamma:g} {auc:.4f}" for gamma, auc in gammas.items())
            told.append(
                f"{scenario.heading}, {MODELS[model].label}: γ {chosen:g} has the highest mean "
                f"validation AUC over seeds ({values})."
            )
    table, document = _table(replace(results, runs=_in_order(runs, results.study)))
    notes = (*_recovered(table), *told, *document.notes)
    return replace(document, notes=notes)


def _in_order(runs: Runs, study: Study) -> Runs:
    """The searched γ right behind the base model."""
    order = [method.name for method in study.methods]
    order.insert(order.index("base") + 1, SEARCHED)
    scenarios = list(dict.fromkeys((cell.scenario, cell.model) for cell in runs))

    def place(cell: Cell) -> tuple[int, int]:
        return scenarios.index((cell.scenario, cell.model)), order.index(cell.method.name)

    return {cell: runs[cell] for cell in sorted(runs, key=place)}


def _figure5(results: Results) -> Document:
    table = assemble(results.command, results.study, results.runs)
    notes = (*interval_sentences(table), *table.legend())
    return Document(table.title, table.sheets(), (intervals(table),), notes, table.values())


# Short heads of the statistics, the paper's five first.
_COUNTED = {
    "users": "users",
    "source": "source behaviours",
    "target": "target behaviours",
    "source_items": "source items",
    "target_items": "target items",
    "source_train": "source trained on",
    "train": "target trained on",
    "users_without_source": "users without source",
}


def _table4(results: Results) -> Document:
    """The statistics of the data, beside what is published of them; nothing is trained."""
    rows: list[tuple[str, ...]] = []
    values: list[dict[str, object]] = []
    told = []
    for scenario, source in results.sources.items():
        data = source.load(0)
        known = {one.statistic: one for one in (check(data) if scenario.published else [])}
        rows.append((scenario.heading, *(f"{data.statistics[key]:,}" for key in _COUNTED)))
        if known:
            shown = [known.get(key) for key in _COUNTED]
            where = "in the paper" if scenario.in_paper else "as published"
            rows.append((where, *(f"{one.expected:,}" if one else "" for one in shown)))
            rows.append(("", *(one.verdict if one else "" for one in shown)))
        if scenario.in_paper:
            told.append(
                f"{scenario.heading}: what the paper counts as source behaviours: "
                f"{source_reading(list(known.values()))}."
            )
        for key, head in _COUNTED.items():
            one = known.get(key)
            line = {"scenario": str(scenario), "statistic": head, "here": data.statistics[key]}
            published = {"published": one and one.expected, "verdict": one and one.verdict}
            values.append(line | published)
    appendix: tuple[Sheet, ...] = ()
    if not any(scenario.in_paper for scenario in results.sources):
        counted = list(PAPER_STATISTICS["Books-Movies"])
        lines = [
            (name, *(f"{row[k]:,}" for k in counted)) for name, row in PAPER_STATISTICS.items()
        ]
        heads = ("scenario", *(_COUNTED[key] for key in counted))
        appendix = (sheet(heads, lines, title="As the paper prints it (Table 4)"),)
    told.append(
        "Of the users found in both domains. Behaviours and items are counted before any cut by "
        "time; source trained on: after it; generated data: of seed 0."
    )
    table = sheet(("scenario", *_COUNTED.values()), rows)
    return Document(results.study.title, (table,), (), tuple(told), tuple(values), appendix)


DOCUMENTS: dict[str, Callable[[Results], Document]] = {
    "table1": _plain,
    "table2": _plain,
    "table3": _plain,
    "table4": _table4,
    "table5": _plain,
    "figure3": lambda results: figure3(results.runs, results.sources),
    "figure4": lambda results: figure4(results.runs, results.sources),
    "figure5": _figure5,
    "figure6": lambda results: figure6(results.runs, results.sources),
    "generated": _generated,
    "evidence": _evidence,
}


def _printed(command: str) -> Sheet:
    """The paper's table, for reference."""
    cells = paper.TABLES[command]
    scenarios = list(dict.fromkeys(scenario for scenario, _, _ in cells))
    relative = any(printed.improvement is not None for printed in cells.values())
    heads = ("AUC", "RelaImpr") if relative else ("AUC",)
    rows = []
    for model, variant in dict.fromkeys((model, variant) for _, model, variant in cells):
        row = [MODELS[model].label + label(variant)]
        for scenario in scenarios:
            printed = cells[scenario, model, variant]
            row += [printed.text, percent(printed.improvement)] if relative else [printed.text]
        rows.append(tuple(row))
    groups = (("", ("model",)), *((scenario, heads) for scenario in scenarios))
    return Sheet(f"As the paper prints it (Table {command[-1]})", groups, tuple(rows))


def _recovered(table: Table) -> list[str]:
    """How much of the oracle's gain over the base model learned weights get."""
    told = []
    for scenario, model in dict.fromkeys((e.cell.scenario, e.cell.model) for e in table.entries):
        base, oracle = (table.find(scenario, model, name) for name in ("base", "oracle"))
        if base is None or oracle is None:
            continue
        gain = oracle.mean - base.mean
        text = f"{scenario.heading}, {base.label}: the oracle, which knows the true flags, gains "
        text += f"{gain:+.4f} AUC over the base model".replace("-", "−")
        learned = [table.find(scenario, model, name) for name in ("ours", "retrain")]
        shares = [(e, e.mean - base.mean) for e in learned if e is not None]
        if gain > 0 and shares:
            parts = (f"{e.label} {100 * own / gain:.0f} %".replace("-", "−") for e, own in shares)
            text += f"; of that gain, {' and '.join(parts)}"
        judged = [
            f"{e.label} {e.weight_auc:.3f} ({min(e.weight_aucs):.3f} to {max(e.weight_aucs):.3f})"
            for e in learned
            if e is not None and e.weight_aucs
        ]
        if judged:
            text += f"; weight AUC, and that of single seeds: {' and '.join(judged)}"
        told.append(text + ".")
    return told
