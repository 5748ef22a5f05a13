"""The table of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from cdr.data import CrossDomainData
from cdr.report.baselines import (
    ABOUT_ENSEMBLES,
    ABOUT_LENIENCY,
    ENSEMBLE,
    ENSEMBLED,
    LENIENCY,
    between_ensembles,
    ensembled,
)
from cdr.report.document import Document, sheet
from cdr.report.rounded import p_value, percent, short, signed
from cdr.report.summary import (
    RELA_IMPR,
    SE,
    SPREAD,
    Seeds,
    Summary,
    Trained,
    begun_again,
    detectable,
    nothing_learned,
    recovered,
    summarize,
    weight_aucs,
)
from cdr.training import WEIGHT_AUC, plan, variant_label


@dataclass(frozen=True)
class Report:
    """The rows of a table, the sentences below it, and what they show of learned weights."""

    title: str
    rows: dict[str, Summary]
    notes: tuple[str, ...]
    conclusions: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.document().text()

    def markdown(self) -> str:
        """The same as markdown."""
        return self.document().markdown()

    def document(self) -> Document:
        """The same to be printed, or put on a page."""
        head, *body = self._cells()
        table = sheet(head, body)
        return Document(self.title, (table,), notes=self.notes, conclusions=self.conclusions)

    def _cells(self) -> list[list[str]]:
        # 80 columns wide at most, without remarks.
        head = ["model", "AUC", "±", "LogLoss", "RelaImpr", "vs base", "SE", "p", "remark"]
        cells = [head]
        for row in self.rows.values():
            spread = "–" if row.std is None else short(row.std)
            c = row.comparison
            cells.append(
                [
                    row.label,
                    f"{row.mean:.4f}",
                    spread,
                    f"{row.log_loss:.4f}",
                    "–" if row.improvement is None else percent(100 * row.improvement),
                    "–" if c is None else signed(c.difference),
                    "–" if c is None else short(c.error),
                    "–" if c is None or c.p_value is None else p_value(c.p_value),
                    row.remark or "–",
                ]
            )
        # A column that says nothing for any row is left out.
        kept = [i for i in range(len(head)) if i == 0 or any(r[i] != "–" for r in cells[1:])]
        return [[row[i] for i in kept] for row in cells]


def report(
    results: Mapping[str, Sequence[Trained]],
    data: CrossDomainData,
    model: str,
    preset: str,
    leniency: Seeds | None = None,
    numbers: Sequence[int] | None = None,
) -> Report:
    """Put the results of some variants, each over the same seeds, into a table.

    Ensembles of the base model and of ours stand below the variants.

    Args:
        results: By variant, in the order of the rows.
        data: Of any seed, for its name and notes.
        model: Name of the recommendation model.
        preset: Name of the preset.
        leniency: That model, of the same seeds; the last row.
        numbers: The seeds; if left out, 0, 1, ….
    """
    seeds = {
        variant: dict(zip(range(len(runs)) if numbers is None else numbers, runs, strict=True))
        for variant, runs in results.items()
    }
    rows = {
        variant: summarize(
            model + variant_label(variant),
            runs,
            single=seeds.get("S"),
            reference=seeds.get("base") if plan(variant).weighted else None,
        )
        for variant, runs in seeds.items()
    }
    ensembles = {v: runs for v in ENSEMBLED if (runs := ensembled(seeds.get(v, {})))}
    more = {
        f"{variant}-ensemble": (rows[variant].label + ENSEMBLE, runs)
        for variant, runs in ensembles.items()
    }
    if leniency is not None:
        more[LENIENCY] = (LENIENCY, leniency)
    rows |= {
        name: summarize(label, runs, single=seeds.get("S"), reference=seeds.get("base"))
        for name, (label, runs) in more.items()
    }
    num_seeds = len(next(iter(results.values())))
    name = " · ".join(filter(None, (data.name, str(data.protocol))))
    title = f"{name} · {model} · preset {preset} · {num_seeds} seed" + "s" * (num_seeds > 1)
    about = _about_untrained(ensembles, leniency is not None)
    return Report(title, rows, (*_notes(rows, data, num_seeds), *about, *data.notes))


def _about_untrained(ensembles: Mapping[str, Seeds], leniency: bool) -> Iterator[str]:
    """What the rows are for which nothing was trained."""
    if ensembles:
        told = between_ensembles(*(ensembles.get(v, {}) for v in ("ours", "base")))
        yield " ".join(filter(None, (ABOUT_ENSEMBLES, told)))
    if leniency:
        yield ABOUT_LENIENCY


def _notes(rows: Mapping[str, Summary], data: CrossDomainData, num_seeds: int) -> list[str]:
    notes = []
    if legend := _legend(rows, num_seeds):
        notes.append(" ".join(legend))
    if told := detectable(list(rows.values())):
        notes.append(told)
    if data.extra_test is not None:
        notes.append(
            "AUC and LogLoss are on the generator's further test behaviours, ten a user; those on "
            "each user's last behaviour are in metrics.json."
        )
    if told := nothing_learned(list(rows.values())):
        notes.append(told)
    if told := begun_again(list(rows.values())):
        notes.append(told)
    base, oracle = rows.get("base"), rows.get("oracle")
    learned = [rows[name] for name in ("ours", "retrain") if name in rows]
    if base and oracle and learned:
        notes.append(f"{data.name}, {base.label}: {recovered(base, oracle, learned)}.")
    if judged := weight_aucs(list(rows.values())):
        notes.append(f"Weight AUC, and that of single seeds: {judged}; {WEIGHT_AUC}.")
    if num_seeds == 1:
        notes.append("One seed: no test over seeds; take more with --seeds.")
    return notes


def _error(num_seeds: int) -> str:
    return SE if num_seeds > 1 else "SE: standard error of that difference, over users only."


def _legend(rows: Mapping[str, Summary], num_seeds: int) -> list[str]:
    legend = []
    if num_seeds > 1:
        legend.append(SPREAD)
    if any(row.improvement is not None for row in rows.values()):
        legend.append(RELA_IMPR)
    if any(row.comparison for row in rows.values()):
        legend.append(f"vs base: AUC less that of the base model. {_error(num_seeds)}")
        legend += ["p: paired t-test over seeds."] if num_seeds > 1 else []
    return legend
