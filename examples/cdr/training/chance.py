"""Trainings that have learned nothing: their scores do not tell positives from negatives."""

from __future__ import annotations

from collections.abc import Sequence

from cdr.training.evaluation import Scores
from cdr.training.metrics import auc, auc_error

# Of trainings that learn nothing, the AUC of 95 % is within so many standard errors of 0.5.
_ERRORS = 1.96
COLLAPSED, AT_CHANCE, BELOW_CHANCE = "collapsed", "at chance", "below chance"
MEANING = {
    COLLAPSED: "all scores are equal",
    AT_CHANCE: f"the AUC is within {_ERRORS} standard errors of 0.5 (over users)",
    BELOW_CHANCE: f"the AUC is more than {_ERRORS} standard errors below 0.5 (over users)",
}
"""What each remark means; in all cases nothing was learned."""


def remark(scores: Scores) -> str:
    """Whether a training has learned nothing: a key of :data:`MEANING`, or "" if it has learned.

    Args:
        scores: On rows that it has not seen.
    """
    if len(scores.label) and scores.equal:
        return COLLAPSED
    above = auc(scores.probability, scores.label) - 0.5
    error = auc_error(scores.probability, scores.label, scores.user)
    if abs(above) <= _ERRORS * error:
        return AT_CHANCE
    return BELOW_CHANCE if above < 0 else ""


RESTARTED = (
    "all validation rows had the same score after every epoch, as where no ReLU of a layer is "
    "above zero: it was trained again from another initialization"
)
"""Why a training was begun once more."""


def warning(scores: Scores) -> str:
    """A line on a training that has learned nothing; "" for any other one."""
    found = remark(scores)
    if not found:
        return ""
    value = auc(scores.probability, scores.label)
    error = auc_error(scores.probability, scores.label, scores.user)
    reason = f"AUC {value:.4f} ± {error:.4f} is {found}"
    return f"  nothing was learned: {MEANING[found] if found == COLLAPSED else reason}"


def counted(remarks: Sequence[str]) -> str:
    """How many trainings of a method have which remark, "at chance 2/5"; "" if none has."""
    found = [(one, remarks.count(one)) for one in MEANING if one in remarks]
    return ", ".join(f"{one} {count}/{len(remarks)}" for one, count in found)


def in_a_cell(remarks: Sequence[str]) -> str:
    """What the cell of a table says of the trainings of a method over seeds.

    A collapsed training is named in any case: it moves the mean as no other does. That some seeds
    are at chance and others are not, belongs below the table.
    """
    if COLLAPSED in remarks and not all(one == COLLAPSED for one in remarks):
        return f"{COLLAPSED} {remarks.count(COLLAPSED)}/{len(remarks)}"
    if not remarks or not all(remarks):
        return ""
    return remarks[0] if len(set(remarks)) == 1 else AT_CHANCE
