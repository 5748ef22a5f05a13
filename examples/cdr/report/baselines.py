"""Rows of tables for which nothing is trained: leniency, and ensembles over the seeds."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from cdr.data import CrossDomainData
from cdr.report.comparison import compare
from cdr.report.rounded import short, signed
from cdr.report.summary import Seeds
from cdr.report.uncertainty import same_rows
from cdr.training import Scores, ensemble, fit_leniency

LENIENCY = "leniency"
"""The label of its row."""

ENSEMBLE = ", ensemble"
"""What follows the label of a row whose seeds are averaged."""

ENSEMBLED = ("base", "ours")
"""Variants of which there is an ensemble."""

ABOUT_LENIENCY = (
    "leniency: logistic regression on smoothed effects of user, item and category and one number a "
    "user, how generously the user rates in the source."
)
ABOUT_ENSEMBLES = (
    "ensemble: log odds averaged over all seeds of the row without it. Its SE leaves out how "
    "ensembles of other seeds would differ."
)


@dataclass(frozen=True, eq=False)
class Untrained:
    """What stands in the place of a training, equal for all seeds on the same data."""

    scores: Scores
    weight_auc: float | None = None
    restarted: bool = False


def leniency(
    load: Callable[[int], CrossDomainData], seeds: Collection[int], *, seeded: bool
) -> Seeds:
    """The leniency model of each seed.

    Args:
        load: The data of a seed.
        seeds: Those of the table.
        seeded: Whether every seed has data of its own; else all have those of seed 0.
    """

    def fitted(seed: int) -> Untrained:
        data = load(seed).to("cpu")
        rows = data.test if data.extra_test is None else data.extra_test
        return Untrained(fit_leniency(data).scores(rows))

    if seeded:
        return {seed: fitted(seed) for seed in seeds}
    return dict.fromkeys(seeds, fitted(0))


def ensembled(seeds: Seeds) -> Seeds:
    """The ensemble of all seeds in the place of each; empty if it has no sense.

    There is none of a single seed, and none where every seed has data of its own.
    """
    scores = [run.scores for run in seeds.values()]
    if len(scores) < 2 or not same_rows(scores):
        return {}
    return dict.fromkeys(seeds, Untrained(ensemble(scores)))


def between_ensembles(ours: Seeds, base: Seeds) -> str:
    """A sentence on two ensembles; "" if there are none.

    They are compared with each other, as single trainings are: an ensemble beside single trainings
    says nothing of weights.
    """
    if not ours or not base:
        return ""
    one, other = next(iter(ours.values())).scores, next(iter(base.values())).scores
    found = compare([one], [other])
    return (
        f"Ensemble of ours less that of the base model: {signed(found.difference)} AUC (SE "
        f"{short(found.error)}, over users only)."
    )
