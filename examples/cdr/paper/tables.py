"""Results by scenario, model and method put into a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cdr.models import MODELS
from cdr.paper import printed as paper
from cdr.paper.scenarios import Scenario
from cdr.paper.studies import Cell, Study
from cdr.report.comparison import Comparison, compare, paired_p_value
from cdr.report.document import Sheet, sheet
from cdr.report.rounded import p_value, percent, short, signed
from cdr.runs.grid import Run
from cdr.training.metrics import WEIGHT_AUC, improvement_over

SIGNIFICANT = 0.05

Runs = Mapping[Cell, Mapping[int, Run]]
"""By cell and seed; a seed whose training failed is missing."""


@dataclass(frozen=True)
class Entry:
    """One method on one scenario over its seeds.

    Attributes:
        cell: which.
        label: model and method.
        auc: of each seed.
        log_loss: mean over seeds.
        gauc: likewise; NaN where each user has one row.
        improvement: RelaImpr; None without the single-domain model, or where that is at chance.
        weight_aucs: of each seed; none where no flags are known or no weights learned.
        comparison: with the study's reference, over the seeds that both have.
        best: the baseline of the highest mean AUC, for ours.
        best_p: p-value of the difference to it.
        star: whether it is significantly better than that.
        printed: what the paper has there.
    """

    cell: Cell
    label: str
    auc: tuple[float, ...]
    log_loss: float
    gauc: float
    improvement: float | None
    weight_aucs: tuple[float, ...]
    comparison: Comparison | None
    best: str | None
    best_p: float | None
    star: bool
    printed: paper.Printed | None

    @property
    def mean(self) -> float:
        """Of the AUC over seeds."""
        return float(np.mean(self.auc))

    @property
    def weight_auc(self) -> float | None:
        """Mean over seeds."""
        return float(np.mean(self.weight_aucs)) if self.weight_aucs else None

    @property
    def std(self) -> float | None:
        """Likewise; None for a single seed."""
        return float(np.std(self.auc, ddof=1)) if len(self.auc) > 1 else None


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
        heads = ["scenario", "model", f"AUC − that of {self.reference}", "95 % CI (users)"]
        rows: list[tuple[str, ...]] = []
        for e in self.entries:
            if e.comparison is not None:
                c = e.comparison
                interval = f"[{signed(c.low)}, {signed(c.high)}]"
                difference = (signed(c.difference), interval, p_value(c.p_value))
                rows.append((e.cell.scenario.heading, e.label, *difference))
        if all(not row[-1] for row in rows):
            rows = [row[:-1] for row in rows]
        else:
            heads.append("p (seeds)")
        return sheet(heads, rows, left=2)

    def legend(self) -> tuple[str, ...]:
        """What the columns that are there mean."""
        told = [text for text, of in _EXPLAINED if any(of(entry) for entry in self.entries)]
        return (" ".join(told),) if told else ()

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
        "p": c and c.p_value,
        "best_baseline": e.best,
        "p_best": e.best_p,
        "star": "*" if e.star else None,
        "paper_auc": printed and printed.auc,
        "paper_rela_impr": printed and printed.improvement,
    }


def assemble(command: str, study: Study, runs: Runs) -> Table:
    """The table of a study.

    Args:
        command: whose it is; the paper's numbers are looked up under it.
        study: what was trained.
        runs: what came out. Cells without any run are left out.
    """
    found = {cell: several for cell, several in runs.items() if several}
    shown = [cell for cell in found if cell.method.name not in study.hidden]
    entries = tuple(_entry(command, cell, study, found) for cell in shown)
    reference = next(m for m in study.methods if m.name == study.reference)
    return Table(study.title, reference.suffix.lstrip("+") or "the base model", entries)


def _entry(command: str, cell: Cell, study: Study, runs: Runs) -> Entry:
    metrics = [run.scores.metrics() for run in runs[cell].values()]
    auc = tuple(m["auc"] for m in metrics)
    flagged = tuple(r.weight_auc for r in runs[cell].values() if r.weight_auc is not None)
    here = (cell.scenario, cell.model)
    beside = {c.method.name: c for c in runs if (c.scenario, c.model) == here}
    single, reference = beside.get("S"), beside.get(study.reference)
    base = _mean_auc(runs[single]) if single else None
    best, best_p, better = None, None, False
    baselines = [beside[name] for name in study.baselines if name in beside]
    if cell.method.name == "ours" and baselines:
        strongest = max(baselines, key=lambda c: _mean_auc(runs[c]))
        best = strongest.method.name
        pairs = _pairs(runs[cell], runs[strongest])
        differences = [a.scores.metrics()["auc"] - b.scores.metrics()["auc"] for a, b in pairs]
        best_p = paired_p_value(differences)
        better = best_p is not None and best_p < SIGNIFICANT and float(np.mean(differences)) > 0
    comparison = None
    if reference is not None and reference != cell:
        pairs = _pairs(runs[cell], runs[reference])
        if pairs:
            comparison = compare([a.scores for a, _ in pairs], [b.scores for _, b in pairs])
    in_paper = cell.scenario.in_paper
    return Entry(
        cell=cell,
        label=MODELS[cell.model].label + cell.method.suffix,
        auc=auc,
        log_loss=float(np.mean([m["log_loss"] for m in metrics])),
        gauc=float(np.mean([m["gauc"] for m in metrics])),
        improvement=improvement_over(float(np.mean(auc)), base),
        weight_aucs=flagged,
        comparison=comparison,
        best=best,
        best_p=best_p,
        star=bool(better),
        printed=paper.TABLES.get(command, {}).get((in_paper, cell.model, cell.method.name))
        if in_paper
        else None,
    )


def _mean_auc(runs: Mapping[int, Run]) -> float:
    return float(np.mean([run.scores.metrics()["auc"] for run in runs.values()]))


def _pairs(ours: Mapping[int, Run], base: Mapping[int, Run]) -> list[tuple[Run, Run]]:
    return [(run, base[seed]) for seed, run in ours.items() if seed in base]


def _columns(entries: Sequence[Entry]) -> dict[str, Callable[[Entry], str]]:
    """From the head of a column to the text of an entry; what says nothing is left out."""
    columns: dict[str, Callable[[Entry], str]] = {
        "AUC": lambda e: f"{e.mean:.4f}{'*' * e.star}",
        "±": lambda e: "" if e.std is None else short(e.std),
        "RelaImpr": lambda e: percent(None if e.improvement is None else 100 * e.improvement),
        "LogLoss": lambda e: f"{e.log_loss:.4f}",
        "weight AUC": lambda e: "" if e.weight_auc is None else f"{e.weight_auc:.3f}",
        "paper AUC": lambda e: e.printed.text if e.printed else "",
        "paper RelaImpr": lambda e: percent(e.printed.improvement if e.printed else None),
    }
    return {head: text for head, text in columns.items() if any(text(e) for e in entries)}


_EXPLAINED: tuple[tuple[str, Callable[[Entry], bool]], ...] = (
    ("±: standard deviation over seeds.", lambda e: e.std is not None),
    (
        "RelaImpr: what AUC lies above 0.5, relative to that of -S.",
        lambda e: e.improvement is not None,
    ),
    (
        "*: better than the best baseline at 0.05 by a paired t-test over seeds.",
        lambda e: e.best_p is not None,
    ),
    (
        "95 % CI: from resampling users with all their rows; p: paired t-test over seeds.",
        lambda e: e.comparison is not None,
    ),
    (
        f"weight AUC: {WEIGHT_AUC}.",
        lambda e: e.weight_auc is not None,
    ),
    ("paper: as Chen et al. print it.", lambda e: e.printed is not None),
)
