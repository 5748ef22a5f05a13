"""Results by scenario, model and method put into a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cdr import paper
from cdr.comparison import Comparison, compare, paired_p_value
from cdr.grid import Run
from cdr.metrics import relative_improvement
from cdr.models import MODELS
from cdr.scenarios import Scenario
from cdr.studies import Cell, Study

SIGNIFICANT = 0.05

_CSV = (
    *("scenario", "model", "method", "label", "seeds", "auc", "std", "rela_impr"),
    *("log_loss", "gauc", "weight_auc", "difference", "low", "high", "p"),
    *("best_baseline", "p_best", "star", "paper_auc", "paper_rela_impr"),
)

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
        weight_auc: mean over seeds; None where no flags are known or no weights learned.
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
    weight_auc: float | None
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
    def std(self) -> float | None:
        """Likewise; None for a single seed."""
        return float(np.std(self.auc, ddof=1)) if len(self.auc) > 1 else None


@dataclass(frozen=True)
class Table:
    """Entries in the order of scenarios, models and methods."""

    title: str
    reference: str
    entries: tuple[Entry, ...]
    notes: tuple[str, ...]

    @property
    def scenarios(self) -> list[Scenario]:
        """The columns' groups."""
        return list(dict.fromkeys(entry.cell.scenario for entry in self.entries))

    def grid(self) -> tuple[list[tuple[str, list[str]]], list[list[str]]]:
        """As the paper lays it out.

        Returns:
            For each group of columns its heading and those of its columns, the first being the
            column of labels; and the rows.
        """
        groups: list[tuple[str, list[str]]] = [("", ["model"])]
        rows: dict[str, list[str]] = {e.label: [e.label] for e in self.entries}
        for scenario in self.scenarios:
            entries = {e.label: e for e in self.entries if e.cell.scenario == scenario}
            heads, columns = _columns(list(entries.values()))
            groups.append((scenario.heading, heads))
            for label, row in rows.items():
                found = entries.get(label)
                row += [column(found) if found else "" for column in columns]
        return groups, list(rows.values())

    def differences(self) -> tuple[list[str], list[list[str]]]:
        """Heads and rows of a table of differences to the reference."""
        heads = ["scenario", "model", f"AUC − that of {self.reference}", "95 % CI (users)"]
        tested = any(len(e.auc) > 1 for e in self.entries)
        rows = []
        for e in self.entries:
            if e.comparison is None:
                continue
            c = e.comparison
            low, high = signed(c.low), signed(c.high)
            row = [e.cell.scenario.heading, e.label, signed(c.difference), f"[{low}, {high}]"]
            rows.append([*row, *([p_value(c.p_value)] if tested else [])])
        return [*heads, *(["p (seeds)"] if tested else [])], rows

    def markdown(self) -> str:
        """The whole of it."""
        groups, rows = self.grid()
        heads = [f"{group} {head}".strip() for group, heads in groups for head in heads]
        parts = [f"## {self.title}", markdown_table(heads, rows)]
        heads, rows = self.differences()
        if rows:
            parts.append(markdown_table(heads, rows, left=2))
        parts.append("\n".join(f"- {note}" for note in self.notes))
        return "\n\n".join(parts) + "\n"

    def csv(self) -> str:
        """A line for each entry."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(_CSV)
        for e in self.entries:
            c, printed = e.comparison, e.printed
            values = [
                *(e.cell.scenario, e.cell.model, e.cell.method.name, e.label, len(e.auc)),
                *(e.mean, e.std, e.improvement, e.log_loss),
                *(None if np.isnan(e.gauc) else e.gauc, e.weight_auc),
                *((c.difference, c.low, c.high, c.p_value) if c else (None,) * 4),
                *(e.best, e.best_p, "*" if e.star else None),
                *((printed.auc, printed.improvement) if printed else (None, None)),
            ]
            writer.writerow([f"{v:.6g}" if isinstance(v, float) else v for v in values])
        return text.getvalue()


def assemble(command: str, study: Study, runs: Runs, notes: Sequence[str]) -> Table:
    """The table of a study.

    Args:
        command: whose it is; the paper's numbers are looked up under it.
        study: what was trained.
        runs: what came out. Cells without any run are left out.
        notes: sentences to print below, after those on the table itself.
    """
    found = {cell: several for cell, several in runs.items() if several}
    shown = [cell for cell in found if cell.method.name not in study.hidden]
    entries = tuple(_entry(command, cell, study, found) for cell in shown)
    reference = next(m for m in study.methods if m.name == study.reference)
    shown_as = reference.suffix.lstrip("+") or "the base model"
    return Table(study.title, shown_as, entries, (*_legend(entries), *notes))


def _entry(command: str, cell: Cell, study: Study, runs: Runs) -> Entry:
    metrics = [run.scores.metrics() for run in runs[cell].values()]
    auc = tuple(m["auc"] for m in metrics)
    flagged = [run.weight_auc for run in runs[cell].values() if run.weight_auc is not None]
    here = (cell.scenario, cell.model)
    beside = {c.method.name: c for c in runs if (c.scenario, c.model) == here}
    single, reference = beside.get("S"), beside.get(study.reference)
    base = _mean_auc(runs[single]) if single else 0.5
    best, best_p, better = None, None, False
    baselines = [beside[name] for name in study.baselines if name in beside]
    if cell.method.name == "ours" and baselines:
        strongest = max(baselines, key=lambda c: _mean_auc(runs[c]))
        best = strongest.method.name
        pairs = _pairs(runs[cell], runs[strongest])
        differences = [a.scores.metrics()["auc"] - b.scores.metrics()["auc"] for a, b in pairs]
        best_p = paired_p_value(differences)
        better = best_p is not None and best_p < SIGNIFICANT and np.mean(differences) > 0
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
        # Nothing is relative to a single-domain model at or below chance.
        improvement=relative_improvement(float(np.mean(auc)), base) if base > 0.5 else None,
        weight_auc=float(np.mean(flagged)) if flagged else None,
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


def _columns(entries: Sequence[Entry]) -> tuple[list[str], list[Callable[[Entry], str]]]:
    """Heads, and from an entry to the text of each; a column that says nothing is left out."""
    columns: dict[str, Callable[[Entry], str]] = {
        "AUC": lambda e: f"{e.mean:.4f}{'*' * e.star}",
        "±": lambda e: "" if e.std is None else short(e.std),
        "RelaImpr": lambda e: _percent(None if e.improvement is None else 100 * e.improvement),
        "LogLoss": lambda e: f"{e.log_loss:.4f}",
        "weight AUC": lambda e: "" if e.weight_auc is None else f"{e.weight_auc:.3f}",
        "paper AUC": lambda e: e.printed.text if e.printed else "",
        "paper RelaImpr": lambda e: _percent(e.printed.improvement if e.printed else None),
    }
    kept = {head: text for head, text in columns.items() if any(text(e) for e in entries)}
    return list(kept), list(kept.values())


_EXPLAINED: tuple[tuple[str, Callable[[Entry], bool]], ...] = (
    ("±: standard deviation over seeds.", lambda e: e.std is not None),
    (
        "RelaImpr: what AUC lies above 0.5, relative to that of -S.",
        lambda e: e.improvement is not None,
    ),
    (
        "*: better than the best of -S, -0 and base at 0.05 by a paired t-test over seeds.",
        lambda e: e.best_p is not None,
    ),
    (
        "95 % CI: from resampling users with all their rows; p: paired t-test over seeds.",
        lambda e: e.comparison is not None,
    ),
    (
        "weight AUC: the probability that a truly relevant source behaviour got a larger weight "
        "than one that is not (0.5 is chance).",
        lambda e: e.weight_auc is not None,
    ),
    ("paper: as Chen et al. print it.", lambda e: e.printed is not None),
)


def _legend(entries: Sequence[Entry]) -> list[str]:
    """What the columns that are there mean."""
    told = [text for text, of in _EXPLAINED if any(of(entry) for entry in entries)]
    return [" ".join(told)] if told else []


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:+.2f}%".replace("-", "−")


def short(value: float, sign: str = "") -> str:
    """Four decimals, without the zero in front of them."""
    return f"{value:{sign}.4f}".replace("0.", ".", 1)


def signed(value: float) -> str:
    """A difference of AUCs."""
    return short(value, "+").replace("-", "−")


def p_value(p: float | None) -> str:
    """Three decimals."""
    if p is None:
        return ""
    return "<.001" if p < 0.0005 else f"{p:.3f}"


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A table whose first ``left`` columns are aligned to the left."""
    rule = ["---"] * left + ["---:"] * (len(heads) - left)
    return "\n".join("| " + " | ".join(row) + " |" for row in (heads, rule, *rows))


def text_table(heads: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """The same in aligned columns."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (heads, *rows)
    ]
    return "\n".join([lines[0], "─" * max(map(len, lines)), *lines[1:]])
