"""Results by scenario, model and method put into a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cdr.models import MODELS
from cdr.paper.baselines import Untrained
from cdr.paper.printed import Printed
from cdr.paper.scenarios import Scenario
from cdr.paper.study import Cell, Runs, Study
from cdr.report import (
    LENIENCY,
    RELA_IMPR,
    SE,
    SPREAD,
    Seeds,
    Sheet,
    Summary,
    detectable,
    mean_auc,
    meanings,
    p_value,
    paired,
    paired_p_value,
    percent,
    recovered,
    sheet,
    short,
    signed,
    summarize,
    weight_aucs,
)
from cdr.training import WEIGHT_AUC

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Best:
    """The baseline of the highest mean AUC, and how ours compares with it.

    Attributes:
        name: Of the baseline.
        p_value: Of the paired t-test over seeds; None for a single seed.
        beaten: Whether ours is significantly better.
    """

    name: str
    p_value: float | None
    beaten: bool


@dataclass(frozen=True)
class Entry(Summary):
    """One method on one scenario over its seeds.

    Attributes:
        cell: Scenario, model and method.
        best: The best baseline, for ours.
        printed: The paper's numbers.
    """

    cell: Cell
    best: Best | None
    printed: Printed | None

    @property
    def beside(self) -> str:
        """The label where each entry is compared with its own model."""
        if self.cell.method.name != LENIENCY:
            return self.label
        return f"{self.label}, beside {MODELS[self.cell.model].label}"

    @property
    def star(self) -> bool:
        """Whether it is significantly better than the best baseline."""
        return self.best is not None and self.best.beaten


@dataclass(frozen=True)
class Table:
    """Entries in the order of scenarios, models and methods.

    Attributes:
        reference: what differences are taken to, in words.
    """

    title: str
    reference: str
    entries: tuple[Entry, ...]

    def find(self, scenario: Scenario, model: str, method: str) -> Entry | None:
        """The entry of a method."""
        wanted = (scenario, model, method)
        here = ((e.cell.scenario, e.cell.model, e.cell.method.name) for e in self.entries)
        return next((e for e, at in zip(self.entries, here, strict=True) if at == wanted), None)

    def sheets(self) -> tuple[Sheet, ...]:
        """The table as the paper lays it out, and the differences to the reference."""
        groups: list[tuple[str, tuple[str, ...]]] = [("", ("model",))]
        rows: dict[str, list[str]] = {e.label: [e.label] for e in self.entries}
        for scenario in dict.fromkeys(e.cell.scenario for e in self.entries):
            entries = {e.label: e for e in self.entries if e.cell.scenario == scenario}
            columns = _columns(list(entries.values()))
            groups.append((scenario.heading, tuple(columns)))
            for label, row in rows.items():
                found = entries.get(label)
                row += [text(found) if found else "" for text in columns.values()]
        main = Sheet("", tuple(groups), tuple(map(tuple, rows.values())))
        differences = self._differences()
        return (main, differences) if differences.rows else (main,)

    def _differences(self) -> Sheet:
        heads = ["scenario", "model", f"AUC − that of {self.reference}", "SE", "95 % CI (users)"]
        rows: list[tuple[str, ...]] = []
        for e in self.entries:
            if e.comparison is not None:
                c = e.comparison
                interval = f"[{signed(c.low)}, {signed(c.high)}]"
                difference = (signed(c.difference), short(c.error), interval, p_value(c.p_value))
                rows.append((e.cell.scenario.heading, e.beside, *difference))
        if all(not row[-1] for row in rows):
            rows = [row[:-1] for row in rows]
        else:
            heads.append("p (seeds)")
        return sheet(heads, rows, left=2)

    def legend(self) -> tuple[str, ...]:
        """The meaning of the columns that are present."""
        legend = [text for text, of in _EXPLAINED if any(of(entry) for entry in self.entries)]
        remarks = [entry for entry in self.entries if entry.remark]
        legend += [f"Nothing was learned: {meanings(remarks)}"] if remarks else []
        told = (" ".join(legend),) if legend else ()
        return (*told, *self._detectable())

    def _detectable(self) -> Iterator[str]:
        """For each scenario and model, the smallest gains that would have been found."""
        for scenario in dict.fromkeys(e.cell.scenario for e in self.entries):
            here = [e for e in self.entries if e.cell.scenario == scenario]
            here = [replace(e, label=e.beside) for e in here]
            if told := detectable(here):
                yield f"{scenario.heading}: {told[0].lower()}{told[1:]}"

    def values(self) -> tuple[dict[str, object], ...]:
        """All numbers, a dict for each entry."""
        return tuple(_values(entry) for entry in self.entries)


def _values(e: Entry) -> dict[str, object]:
    c, printed = e.comparison, e.printed
    return {
        "scenario": str(e.cell.scenario),
        "model": e.cell.model,
        "method": e.cell.method.name,
        "label": e.label,
        "seeds": len(e.auc),
        "auc": e.mean,
        "std": e.std,
        "rela_impr": e.improvement,
        "log_loss": e.log_loss,
        "gauc": None if np.isnan(e.gauc) else e.gauc,
        "weight_auc": e.weight_auc,
        "difference": c and c.difference,
        "low": c and c.low,
        "high": c and c.high,
        "se": c and c.error,
        "detectable": c and c.detectable,
        "p": c and c.p_value,
        "best_baseline": e.best and e.best.name,
        "p_best": e.best and e.best.p_value,
        "star": "*" if e.star else None,
        "remark": e.remark or None,
        "paper_auc": printed and printed.auc,
        "paper_rela_impr": printed and printed.improvement,
    }


def assemble(study: Study, runs: Runs, more: Untrained | None = None) -> Table:
    """The table of a study.

    Args:
        study: Its methods, reference and baselines.
        runs: What was trained. Cells without any run are left out.
        more: Rows for which nothing was trained, below those of their model.
    """
    found: dict[Cell, Seeds] = {cell: seeds for cell, seeds in runs.items() if seeds}
    found |= more or {}
    shown = [cell for cell in found if cell.method.name not in study.hidden]
    entries = tuple(_entry(cell, study, found) for cell in _grouped(shown))
    reference = next(m for m in study.methods if m.name == study.reference)
    return Table(study.title, reference.suffix.lstrip("+") or "the base model", entries)


_LEARNED = ("ours", "retrain", "crossfit", "influence", "held-out-loss")


def oracle_notes(table: Table) -> list[str]:
    """How much of the oracle's gain over the base model learned weights recover, where known."""
    notes = []
    for scenario, model in dict.fromkeys((e.cell.scenario, e.cell.model) for e in table.entries):
        base, oracle = (table.find(scenario, model, name) for name in ("base", "oracle"))
        if base is None or oracle is None:
            continue
        learned = [table.find(scenario, model, name) for name in _LEARNED]
        known = [entry for entry in learned if entry is not None]
        text = f"{scenario.heading}, {base.label}: {recovered(base, oracle, known)}"
        if judged := weight_aucs(known):
            text += f"; weight AUC, and that of single seeds: {judged}"
        notes.append(text + ".")
    return notes


def _grouped(cells: Sequence[Cell]) -> list[Cell]:
    """Cells by scenario and model, those of each in their order."""
    groups = list(dict.fromkeys((cell.scenario, cell.model) for cell in cells))
    return sorted(cells, key=lambda cell: groups.index((cell.scenario, cell.model)))


def _label(cell: Cell) -> str:
    return (
        LENIENCY if cell.method.name == LENIENCY else MODELS[cell.model].label + cell.method.suffix
    )


def _entry(cell: Cell, study: Study, runs: Mapping[Cell, Seeds]) -> Entry:
    here = (cell.scenario, cell.model)
    beside = {c.method.name: c for c in runs if (c.scenario, c.model) == here}
    single, reference = beside.get("S"), beside.get(study.reference)
    summary = summarize(
        _label(cell),
        runs[cell],
        single=runs[single] if single else None,
        reference=runs[reference] if reference and reference != cell else None,
    )
    baselines = [beside[name] for name in study.baselines if name in beside]
    ours = cell.method.name == "ours"
    place = (cell.scenario.in_paper or "", cell.model, cell.method.name)
    return Entry(
        **vars(summary),
        cell=cell,
        best=_best(cell, baselines, runs) if ours and baselines else None,
        printed=study.printed.get(place),
    )


def _best(cell: Cell, baselines: Sequence[Cell], runs: Mapping[Cell, Seeds]) -> Best:
    """The comparison of a cell with the baseline of the highest mean AUC."""
    strongest = max(baselines, key=lambda baseline: mean_auc(runs[baseline]))
    pairs = paired(runs[cell], runs[strongest])
    differences = [a.metrics()["auc"] - b.metrics()["auc"] for a, b in pairs]
    p = paired_p_value(differences)
    beaten = p is not None and p < SIGNIFICANT and float(np.mean(differences)) > 0
    return Best(strongest.method.name, p, beaten)


def _columns(entries: Sequence[Entry]) -> dict[str, Callable[[Entry], str]]:
    """From the head of a column to the text of an entry; empty columns are left out."""
    columns: dict[str, Callable[[Entry], str]] = {
        "AUC": lambda e: f"{e.mean:.4f}{'*' * e.star}",
        "±": lambda e: "" if e.std is None else short(e.std),
        "RelaImpr": lambda e: percent(None if e.improvement is None else 100 * e.improvement),
        "LogLoss": lambda e: f"{e.log_loss:.4f}",
        "remark": lambda e: e.remark,
        "weight AUC": lambda e: "" if e.weight_auc is None else f"{e.weight_auc:.3f}",
        "paper AUC": lambda e: e.printed.text if e.printed else "",
        "paper RelaImpr": lambda e: percent(e.printed.improvement if e.printed else None),
    }
    return {head: text for head, text in columns.items() if any(text(e) for e in entries)}


_EXPLAINED: tuple[tuple[str, Callable[[Entry], bool]], ...] = (
    (SPREAD, lambda e: e.std is not None),
    (RELA_IMPR, lambda e: e.improvement is not None),
    (
        "*: better than the best baseline at 0.05 by a paired t-test over seeds.",
        lambda e: e.best is not None and e.best.p_value is not None,
    ),
    (
        f"{SE} 95 % CI: from resampling users with all their rows; p: paired t-test over seeds.",
        lambda e: e.comparison is not None,
    ),
    (
        f"weight AUC: {WEIGHT_AUC}.",
        lambda e: e.weight_auc is not None,
    ),
    ("paper: as Chen et al. print it.", lambda e: e.printed is not None),
)
