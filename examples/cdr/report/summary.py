"""Results of one method over its seeds, compared with others, in numbers and in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from cdr.report.comparison import Comparison, compare
from cdr.report.rounded import short, signed
from cdr.training import MEANING, RESTARTED, Scores, counted, improvement_over, in_a_cell, remark

SPREAD = "±: standard deviation over seeds."
SE = "SE: standard error of that difference, over seeds and users together."
RELA_IMPR = "RelaImpr: what AUC lies above 0.5, relative to that of -S."


class Trained(Protocol):
    """A finished training."""

    @property
    def scores(self) -> Scores:
        """Scores on the rows that tables are made from."""

    @property
    def weight_auc(self) -> float | None:
        """AUC of the learned weights against the true flags, where both are known."""

    @property
    def restarted(self) -> bool:
        """Whether it was begun once more, since it had told no rows apart."""


Seeds = Mapping[int, Trained]
"""The trainings of one method, by seed."""


@dataclass(frozen=True)
class Summary:
    """One method over its seeds.

    Attributes:
        label: Model and method.
        auc: Of each seed.
        log_loss: Mean over seeds.
        gauc: Likewise; NaN where each user has one row.
        improvement: RelaImpr; None without the single-domain model, or where that is at chance.
        weight_aucs: Of each seed; empty where no flags are known or no weights learned.
        remarks: Of each seed whether nothing was learned, see :func:`cdr.training.remark`.
        comparison: With the reference, over the seeds that both have.
        restarted: The seeds that were begun once more.
    """

    label: str
    auc: tuple[float, ...]
    log_loss: float
    gauc: float
    improvement: float | None
    weight_aucs: tuple[float, ...]
    remarks: tuple[str, ...]
    comparison: Comparison | None
    restarted: tuple[int, ...]

    @property
    def mean(self) -> float:
        """Mean AUC over seeds."""
        return float(np.mean(self.auc))

    @property
    def std(self) -> float | None:
        """Standard deviation of the AUC over seeds; None for a single seed."""
        return float(np.std(self.auc, ddof=1)) if len(self.auc) > 1 else None

    @property
    def remark(self) -> str:
        """Whether nothing was learned, for a cell of a table."""
        return in_a_cell(self.remarks)

    @property
    def weight_auc(self) -> float | None:
        """Mean AUC of the weights over seeds."""
        return float(np.mean(self.weight_aucs)) if self.weight_aucs else None


def summarize(
    label: str, seeds: Seeds, single: Seeds | None = None, reference: Seeds | None = None
) -> Summary:
    """Average the seeds of a method and compare it with others.

    Args:
        label: Model and method.
        seeds: Its trainings.
        single: Those of the single-domain model, which RelaImpr is relative to.
        reference: Those of the method to compare with.
    """
    # What no seed changes has one result, and no test over seeds.
    runs = list({id(run.scores): run for run in seeds.values()}.values())
    metrics = [run.scores.metrics() for run in runs]
    auc = tuple(m["auc"] for m in metrics)
    pairs = paired(seeds, reference or {})
    comparison = compare([a for a, _ in pairs], [b for _, b in pairs]) if pairs else None
    if comparison is not None and len(runs) < len(pairs):
        comparison = replace(comparison, p_value=None)
    return Summary(
        label=label,
        auc=auc,
        log_loss=float(np.mean([m["log_loss"] for m in metrics])),
        gauc=float(np.mean([m["gauc"] for m in metrics])),
        improvement=improvement_over(float(np.mean(auc)), mean_auc(single) if single else None),
        weight_aucs=tuple(r.weight_auc for r in runs if r.weight_auc is not None),
        remarks=tuple(remark(run.scores) for run in runs),
        comparison=comparison,
        restarted=tuple(seed for seed, run in seeds.items() if run.restarted),
    )


def nothing_learned(summaries: Sequence[Summary]) -> str:
    """In how many trainings of which method nothing was learned; "" if something was in all."""
    named = [f"{one.label} {counted(one.remarks)}" for one in summaries if any(one.remarks)]
    return f"Nothing was learned in {'; '.join(named)}. {meanings(summaries)}" if named else ""


def begun_again(summaries: Sequence[Summary]) -> str:
    """Which seeds of which method were trained once more, and why; "" if none was."""
    named = [
        f"{one.label} seed{'s' * (len(one.restarted) > 1)} {', '.join(map(str, one.restarted))}"
        for one in summaries
        if one.restarted
    ]
    return f"Restarted once, {'; '.join(named)}: {RESTARTED}." if named else ""


def meanings(summaries: Sequence[Summary]) -> str:
    """What the remarks on some methods mean; "" if there are none."""
    found = {one for summary in summaries for one in summary.remarks}
    told = [f"{one}: {meaning}" for one, meaning in MEANING.items() if one in found]
    return f"{'; '.join(told)}." if told else ""


def detectable(summaries: Sequence[Summary]) -> str:
    """The smallest gain that the comparison of each method would have found; "" without any."""
    found = [
        f"{one.label} {short(one.comparison.detectable)}"
        for one in summaries
        # Equal predictions, of variants that had no outer step, have no error.
        if one.comparison is not None and one.comparison.error > 0
    ]
    if not found:
        return ""
    return (
        "Smallest detectable gain, which such a comparison finds in 80 % of all cases (2.8 SE, "
        f"two-sided test at 5 %): {'; '.join(found)}."
    )


def mean_auc(seeds: Seeds) -> float:
    """Mean AUC over seeds."""
    return float(np.mean([run.scores.metrics()["auc"] for run in seeds.values()]))


def paired(ours: Seeds, base: Seeds) -> list[tuple[Scores, Scores]]:
    """The scores of the seeds that both have."""
    return [(run.scores, base[seed].scores) for seed, run in ours.items() if seed in base]


def recovered(base: Summary, oracle: Summary, learned: Sequence[Summary]) -> str:
    """The oracle's gain over the base model, and the shares of it that learned weights recover.

    Args:
        base: The base model.
        oracle: The model trained with the true flags as weights.
        learned: Models trained with learned weights.
    """
    gain = oracle.mean - base.mean
    text = f"the oracle, which knows the true flags, gains {signed(gain)} AUC over the base model"
    error = oracle.comparison.error if oracle.comparison is not None else 0.0
    if 0 < gain <= error:
        text += f", no more than its standard error ({short(error)}): no share of it can be told"
    elif gain > 0 and learned:
        shares = (100 * (one.mean - base.mean) / gain for one in learned)
        text += "; of that gain, " + ", ".join(
            f"{one.label} " + f"{share:.0f} %".replace("-", "−")
            for one, share in zip(learned, shares, strict=True)
        )
    return text


def weight_aucs(summaries: Sequence[Summary]) -> str:
    """The weight AUC of each method that has one, with its range over seeds."""
    return ", ".join(
        f"{one.label} {one.weight_auc:.3f}"
        + (f" ({min(one.weight_aucs):.3f} to {max(one.weight_aucs):.3f})")
        for one in summaries
        if one.weight_auc is not None
    )
