"""What Chen et al. (WWW'23) print, to stand beside what is reproduced."""

from __future__ import annotations

from dataclasses import dataclass

from cdr.data.manifest import PAPER_STATISTICS

SCENARIOS = tuple(PAPER_STATISTICS)
_IN_TABLE3 = ("Books-CDs", "CDs-Cloth", "Elec-Cloth")
_IN_TABLE5 = ("Books-CDs", "Books-Toys")


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


def _pairs(scenarios: tuple[str, ...], text: str) -> Cells:
    """Lines of model, variant, and for each scenario AUC and RelaImpr."""
    cells = {}
    for line in text.strip().splitlines():
        model, variant, *numbers = line.split()
        aucs, improvements = numbers[::2], numbers[1::2]
        for scenario, auc, improvement in zip(scenarios, aucs, improvements, strict=True):
            printed = Printed(float(auc.rstrip("*")), float(improvement), auc.endswith("*"))
            cells[scenario, model, variant] = printed
    return cells


def _aucs(scenarios: tuple[str, ...], text: str) -> Cells:
    """Lines of model, variant, and for each scenario AUC."""
    lines = [line.split() for line in text.strip().splitlines()]
    return {
        (scenario, model, variant): Printed(float(auc))
        for model, variant, *aucs in lines
        for scenario, auc in zip(scenarios, aucs, strict=True)
    }


TABLES: dict[str, Cells] = {
    "table1": _pairs(
        SCENARIOS,
        """
minet S 0.7557 0.00 0.7019 0.00 0.6585 0.00 0.6706 0.00 0.5913 0.00 0.6161 0.00 0.6001 0.00
minet 0 0.7508 -1.92 0.6995 -1.19 0.6523 -3.91 0.6658 -2.81 0.5950 4.05 0.6094 -5.77 0.5885 -11.59
minet base 0.7616 2.31 0.7080 3.02 0.6540 -2.84 0.6711 0.29 0.5876 -4.05 0.6079 -7.06 0.5966 -3.50
minet ours 0.7639* 3.21 0.7145* 6.24 0.6678* 5.87 0.6883* 10.38 0.6020* 11.72 0.6212* 4.39 0.6099* 9.79
conet S 0.7633 0.00 0.7165 0.00 0.6758 0.00 0.6918 0.00 0.5999 0.00 0.6465 0.00 0.6152 0.00
conet 0 0.7643 0.38 0.7196 1.43 0.6808 2.84 0.6927 0.47 0.6134 13.51 0.6471 0.41 0.6206 4.69
conet base 0.7693 2.28 0.7239 3.42 0.6764 0.34 0.6989 3.70 0.6110 11.11 0.6471 0.41 0.6238 7.47
conet ours 0.7721* 3.34 0.7274* 5.03 0.6864* 6.03 0.7048* 6.78 0.6176* 17.72 0.6558* 6.35 0.6308* 13.54
""",  # noqa: E501
    ),
    "table2": _pairs(
        SCENARIOS,
        """
minet ours 0.7639 3.21 0.7145 6.24 0.6678 5.87 0.6883 10.38 0.6020 11.72 0.6212 4.39 0.6099 9.79
minet no-global 0.7632 2.93 0.7110 4.51 0.6645 3.79 0.6843 8.03 0.6016 11.28 0.6194 2.84 0.6060 5.89
minet no-user 0.7618 2.39 0.7050 1.54 0.6657 4.54 0.6792 5.04 0.5910 -0.33 0.6216 4.74 0.6048 4.70
conet ours 0.7721 3.34 0.7274 5.03 0.6864 6.03 0.7048 6.78 0.6176 17.72 0.6558 6.35 0.6308 13.54
conet no-global 0.7715 3.11 0.7265 4.62 0.6827 3.92 0.7032 5.94 0.6172 17.32 0.6524 4.03 0.6266 9.90
conet no-user 0.7692 2.24 0.7254 4.11 0.6829 4.04 0.6935 0.89 0.6176 17.72 0.6521 3.82 0.6263 9.64
""",
    ),
    "table3": _pairs(
        _IN_TABLE3,
        """
minet split-0.01 0.7037 0.89 0.6016 11.28 0.5996 -0.53
minet split-0.05 0.7019 0.00 0.5982 7.56 0.5993 -0.80
minet split-0.1 0.6960 -2.92 0.5945 3.50 0.5970 -3.10
minet ours 0.7145 6.24 0.6020 11.72 0.6099 9.79
conet split-0.01 0.7227 2.88 0.6176 17.72 0.6244 8.02
conet split-0.05 0.7204 1.79 0.6160 16.15 0.6237 7.41
conet split-0.1 0.7176 0.52 0.6114 11.54 0.6254 8.88
conet ours 0.7274 5.03 0.6176 17.72 0.6308 13.54
""",
    ),
    "table5": _aucs(
        _IN_TABLE5,
        """
dasl S 0.7106 0.6771
dasl 0 0.7128 0.6786
dasl base 0.7100 0.6734
dasl ours 0.7165 0.6842
""",
    ),
}
