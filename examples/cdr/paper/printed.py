"""Numbers that Chen et al. (WWW'23) print, to be shown beside those reproduced."""

from __future__ import annotations

from dataclasses import dataclass

from cdr.data import DATASETS

SCENARIOS = tuple(DATASETS["amazon"].paper_scenarios)
"""The seven scenarios, in the order of the columns."""


@dataclass(frozen=True)
class Printed:
    """One printed result.

    Attributes:
        auc: mean over five seeds.
        improvement: RelaImpr in percent; None where the table has none.
        significant: whether it has a star.
    """

    auc: float
    improvement: float | None = None
    significant: bool = False

    @property
    def text(self) -> str:
        """The AUC as printed."""
        return f"{self.auc:.4f}{'*' * self.significant}"


Cells = dict[tuple[str, str, str], Printed]
"""By scenario, model and variant, in the order of the rows."""


def auc_and_improvement(scenarios: tuple[str, ...], text: str) -> Cells:
    """Parse lines of model, variant, and for each scenario AUC and RelaImpr."""
    cells = {}
    for line in text.strip().splitlines():
        model, variant, *numbers = line.split()
        aucs, improvements = numbers[::2], numbers[1::2]
        for scenario, auc, improvement in zip(scenarios, aucs, improvements, strict=True):
            printed = Printed(float(auc.rstrip("*")), float(improvement), auc.endswith("*"))
            cells[scenario, model, variant] = printed
    return cells


def auc_only(scenarios: tuple[str, ...], text: str) -> Cells:
    """Parse lines of model, variant, and for each scenario AUC."""
    lines = [line.split() for line in text.strip().splitlines()]
    return {
        (scenario, model, variant): Printed(float(auc))
        for model, variant, *aucs in lines
        for scenario, auc in zip(scenarios, aucs, strict=True)
    }
