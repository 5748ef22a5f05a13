"""The paper's numbers were typed in right: its RelaImpr follows from its own AUCs."""

from __future__ import annotations

import pytest

from cdr.paper.printed import SCENARIOS
from cdr.paper.studies import STUDIES
from cdr.training.metrics import relative_improvement

Cell = tuple[str, str, str]


def recomputed(table: str) -> dict[Cell, tuple[float, float]]:
    """RelaImpr in percent, as recomputed from the printed AUCs and as printed."""
    both = {}
    for (scenario, model, variant), cell in STUDIES[table].printed.items():
        single = STUDIES["table1"].printed[scenario, model, "S"].auc
        found = round(100 * relative_improvement(cell.auc, single), 2)
        assert cell.improvement is not None
        both[scenario, model, variant] = (found, cell.improvement)
    return both


@pytest.mark.parametrize(("table", "num"), [("table1", 56), ("table2", 42)])
def test_relative_improvements_are_those_printed(table: str, num: int) -> None:
    both = recomputed(table)
    assert len(both) == num
    assert {cell: b for cell, b in both.items() if b[0] != b[1]} == {}


def test_those_of_table_3_differ_by_rounding() -> None:
    # They must have been computed from AUCs that were not rounded yet: five more digits of an AUC
    # move RelaImpr by up to 0.00005 / (AUC_S − 0.5), which is 0.05 points for the lowest AUC_S.
    both = recomputed("table3")
    assert len(both) == 24
    assert sum(found == printed for found, printed in both.values()) == 15
    assert max(abs(found - printed) for found, printed in both.values()) <= 0.04 + 1e-9


def test_tables_agree_on_what_they_share() -> None:
    first = STUDIES["table1"].printed
    for table in ("table2", "table3"):
        for (scenario, model, variant), cell in STUDIES[table].printed.items():
            if variant == "ours":
                assert cell.auc == first[scenario, model, "ours"].auc
                assert cell.improvement == first[scenario, model, "ours"].improvement


def test_stars_are_those_of_ours() -> None:
    starred = {cell for cell, printed in STUDIES["table1"].printed.items() if printed.significant}
    assert starred == {(s, m, "ours") for s in SCENARIOS for m in ("minet", "conet")}
    assert STUDIES["table1"].printed["Books-Toys", "minet", "ours"].text == "0.6883*"


def test_ours_is_the_best_of_table_5() -> None:
    cells = STUDIES["table5"].printed
    assert len(cells) == 8
    for scenario in ("Books-CDs", "Books-Toys"):
        aucs = {variant: p.auc for (s, _, variant), p in cells.items() if s == scenario}
        assert max(aucs, key=lambda variant: aucs[variant]) == "ours"
