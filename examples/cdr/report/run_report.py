"""The table of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cdr.data.schema import CrossDomainData
from cdr.report.comparison import Comparison, compare
from cdr.report.document import Document, sheet
from cdr.report.rounded import p_value, percent, short, signed
from cdr.training.loop import Result
from cdr.training.metrics import WEIGHT_AUC, improvement_over
from cdr.training.variants import label, plan


@dataclass(frozen=True)
class Row:
    """One variant over its seeds."""

    label: str
    auc: tuple[float, ...]
    log_loss: float
    improvement: float | None
    weight_auc: float | None
    comparison: Comparison | None


@dataclass(frozen=True)
class Report:
    """The rows of a table, and the sentences below it."""

    title: str
    rows: dict[str, Row]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        return self.document().text()

    def markdown(self) -> str:
        """The same as markdown."""
        return self.document().markdown()

    def document(self) -> Document:
        """The same to be printed, or put on a page."""
        head, *body = self._cells()
        return Document(self.title, (sheet(head, body),), notes=self.notes)

    def _cells(self) -> list[list[str]]:
        # 80 columns wide at most.
        head = ["model", "AUC", "±", "LogLoss", "RelaImpr", "vs base", "p", "95 % CI"]
        cells = [head]
        for row in self.rows.values():
            spread = short(float(np.std(row.auc, ddof=1))) if len(row.auc) > 1 else "–"
            c = row.comparison
            cells.append(
                [
                    row.label,
                    f"{np.mean(row.auc):.4f}",
                    spread,
                    f"{row.log_loss:.4f}",
                    "–" if row.improvement is None else percent(100 * row.improvement),
                    "–" if c is None else signed(c.difference),
                    "–" if c is None or c.p_value is None else p_value(c.p_value),
                    "–" if c is None else f"[{signed(c.low)}, {signed(c.high)}]",
                ]
            )
        # A column that says nothing for any row is left out.
        kept = [i for i in range(len(head)) if i == 0 or any(r[i] != "–" for r in cells[1:])]
        return [[row[i] for i in kept] for row in cells]


def report(
    results: Mapping[str, Sequence[Result]], data: CrossDomainData, model: str, preset: str
) -> Report:
    """Put the results of some variants, each over the same seeds, into a table.

    Args:
        results: by variant, in the order of the rows.
        data: of any seed, for its name and notes.
        model: name of the recommendation model.
        preset: name of the preset.
    """
    num_seeds = len(next(iter(results.values())))
    extra = data.extra_test is not None
    scores = {
        variant: [r.extra_test if r.extra_test is not None else r.test for r in several]
        for variant, several in results.items()
    }
    metrics = {v: [s.metrics() for s in several] for v, several in scores.items()}
    auc = {v: tuple(m["auc"] for m in several) for v, several in metrics.items()}
    single = float(np.mean(auc["S"])) if "S" in auc else None
    rows = {}
    for variant, several in results.items():
        flagged = [r.weight_auc for r in several if r.weight_auc is not None]
        compared = plan(variant).source in ("learned", "fixed") and "base" in results
        rows[variant] = Row(
            label=model + label(variant),
            auc=auc[variant],
            log_loss=float(np.mean([m["log_loss"] for m in metrics[variant]])),
            improvement=improvement_over(float(np.mean(auc[variant])), single),
            weight_auc=float(np.mean(flagged)) if flagged else None,
            comparison=compare(scores[variant], scores["base"]) if compared else None,
        )
    title = f"{data.name} · {model} · preset {preset} · {num_seeds} seed" + "s" * (num_seeds > 1)
    return Report(title, rows, (*_sentences(rows, extra, num_seeds), *data.notes))


def _sentences(rows: Mapping[str, Row], extra: bool, num_seeds: int) -> list[str]:
    told = []
    legend = []
    if num_seeds > 1:
        legend.append("±: standard deviation over seeds.")
    if any(row.improvement is not None for row in rows.values()):
        legend.append("RelaImpr: what AUC lies above 0.5, relative to that of -S.")
    if any(row.comparison for row in rows.values()):
        tested = "p: paired t-test over seeds; " if num_seeds > 1 else ""
        legend.append(f"vs base: AUC less that of the base model; {tested}95 % CI: over users.")
    if legend:
        told.append(" ".join(legend))
    if extra:
        told.append(
            "AUC and LogLoss are on the generator's further test behaviours, ten a user; those on "
            "each user's last behaviour are in metrics.json."
        )
    ours, retrained, oracle = (rows.get(name) for name in ("ours", "retrain", "oracle"))
    if ours and oracle and ours.comparison and oracle.comparison:
        best = oracle.comparison.difference
        text = f"The oracle, which knows the true flags, gains {best:+.4f} AUC over the base model"
        if best > 0:
            text += f"; the learned weights recover {_share(ours.comparison, best)} of that"
            if retrained and retrained.comparison:
                share = _share(retrained.comparison, best)
                text += f", those of a search, in a new model, {share}"
        told.append(text + ".")
    judged = [f"{r.weight_auc:.3f} ({r.label})" for r in rows.values() if r.weight_auc is not None]
    if judged:
        told.append(f"Weight AUC {', '.join(judged)}: {WEIGHT_AUC}.")
    if num_seeds == 1:
        told.append("One seed: no test over seeds; take more with --seeds.")
    return told


def _share(comparison: Comparison, best: float) -> str:
    """How much of the oracle's gain a variant gets."""
    gain = comparison.difference
    return f"{100 * gain / best:.0f} %" if gain > 0 else "nothing"
