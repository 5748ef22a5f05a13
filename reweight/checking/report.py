"""The report of a check."""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass

from reweight.verdict import SolveInfo

_WIDTH, _TEXT_WIDTH = 110, 88
_MARK = "  <- worst"


@dataclass(frozen=True)
class CheckRow:
    """One weighter parameter, moved along a random unit direction.

    Attributes:
        name: name of the parameter.
        hypergradient: the derivative along the direction, as the wrapped object computes it.
        exact: the same with the linear system solved to rounding.
        finite_difference: the same by solving the inner problem again on both sides.
        error: the difference between hypergradient and finite difference, relative to the largest
            finite difference of all rows, so that the largest of these errors is the report's.

    Where nothing could be compared, ``finite_difference`` and ``error`` are not numbers (``nan``).
    """

    name: str
    hypergradient: float
    exact: float
    finite_difference: float
    error: float


@dataclass(frozen=True)
class CheckReport:
    """What :func:`check_hypergradient` found; ``print`` it.

    Attributes:
        rows: one per weighter parameter.
        error: largest difference between hypergradient and finite difference, relative to the
            largest finite difference, or to the smallest that could be told from zero: 1e-9 of the
            outer gradient, or what rounding of the outer loss leaves of ``rtol``. Not a number
            where nothing could be compared.
        exact_error: the same for the exact solve.
        rtol: what was asked for.
        inner_gradient: norm of the gradient of the inner problem that was compared (``damping``
            included) at the solution found, relative to the outer gradient's.
        info: the verdict of the wrapped object's own solve.
        verdict: the outcome in one line.
        advice: what a mismatch most likely comes from; says so if there is none.
        position: where the model's parameters stand in the inner problem that ``wrap`` was told
            of, as they are now, and what that says about the loop that trained them. It has no
            part in ``ok``.
        damping: what was added to the inner problem, on both sides of the comparison, because it
            could not be compared without; 0 if it could.
    """

    rows: tuple[CheckRow, ...]
    error: float
    exact_error: float
    rtol: float
    inner_gradient: float
    info: SolveInfo
    verdict: str
    advice: str
    position: str
    damping: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether the hypergradient agrees with finite differences to ``rtol``."""
        return self.error <= self.rtol

    def __str__(self) -> str:
        return "\n".join(
            [
                self.verdict,
                *self._table(),
                *_paragraph("advice:", self.advice),
                *(_paragraph("damping:", self._damped) if self.damping else ()),
                *_paragraph("position:", self.position),
            ]
        )

    @property
    def _damped(self) -> str:
        return (
            f"{self.damping:g} was added to the inner problem, on both sides, since without it "
            "the problem has no minimum to be found here. Your own outer steps go without it, so "
            "heed the verdict of each in its info.message"
        )

    def _table(self) -> list[str]:
        columns = "".join(
            f"  {c:>14}" for c in ("hypergradient", "exact solve", "finite diff.")
        ) + "  {:>8}".format("error")
        longest = max(9, *(len(row.name) for row in self.rows))
        width = min(longest, _WIDTH - len(columns) - len(_MARK))
        # Where all is well, or nothing known, no row needs pointing at.
        pointless = self.ok or math.isnan(self.error) or len(self.rows) == 1
        worst = None if pointless else max(self.rows, key=lambda row: row.error)
        return [
            f"{'parameter':<{width}}{columns}",
            *(
                f"{shortened(row.name, width):<{width}}  {row.hypergradient:>14.6e}"
                f"  {row.exact:>14.6e}  {_number(row.finite_difference, 14, 6)}"
                f"  {_number(row.error, 8, 1)}{_MARK if row is worst else ''}"
                for row in self.rows
            ),
        ]


def shortened(name: str, width: int) -> str:
    """``name`` in at most ``width`` characters, without its middle if need be."""
    if len(name) <= width:
        return name
    head = (width - 1) // 2
    return f"{name[:head]}…{name[len(name) - (width - 1 - head) :]}"


def _number(value: float, width: int, digits: int) -> str:
    return f"{'-':>{width}}" if math.isnan(value) else f"{value:>{width}.{digits}e}"


def _paragraph(label: str, text: str) -> list[str]:
    # Hyphens stay where they are: "1e-06" and "float-point" are not places to break.
    return textwrap.wrap(
        text,
        _TEXT_WIDTH,
        initial_indent=f"{label:<10}",
        subsequent_indent=" " * 10,
        break_on_hyphens=False,
        break_long_words=False,
    )
