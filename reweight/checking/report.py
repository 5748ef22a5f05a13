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

    Where nothing could be compared, all but ``hypergradient`` are not numbers (``nan``). It is then
    the derivative at the original parameters.
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
        hessian_share: the difference between the exact hypergradient and the one without the
            Hessian, relative to the exact one, along the directions compared. Weight decay and
            damping remain in place of the Hessian, or the best multiple of the identity where there
            are none. Not a number where nothing was compared.
        unlisted: tensors that require a gradient and that the losses depend on, but that are
            neither inner parameters nor the weighter's, nor left out by ``inner_params``.
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
    hessian_share: float = math.nan
    unlisted: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the hypergradient agrees with finite differences to ``rtol``."""
        return self.error <= self.rtol

    @property
    def setup_ok(self) -> bool:
        """Whether all but the solver's own truncation is right, which a truncated solver is not.

        That is, the exact solve agrees to ``rtol``, and no tensor is ``unlisted``.
        """
        return (self.ok or self.exact_error <= self.rtol) and not self.unlisted

    def __str__(self) -> str:
        return "\n".join(
            [
                self.verdict,
                *self._table(),
                *_paragraph("advice:", self.advice),
                *(_paragraph("damping:", self._damped) if self.damping else ()),
                *(_paragraph("hessian:", self._hessian) if self.damping or self._hidden else ()),
                *(_paragraph("unlisted:", self._others) if self.unlisted else ()),
                *_paragraph("position:", self.position),
            ]
        )

    @property
    def _damped(self) -> str:
        return (
            f"{self.damping:g} was added to the inner problem, on both sides, with its centre "
            "where it makes your parameters the minimum: without it, the check found none. Your "
            "own outer steps go without it, so heed the verdict of each in its info.message"
        )

    @property
    def _agreement(self) -> float:
        return self.error if self.ok else self.exact_error

    @property
    def _hidden(self) -> bool:
        """Whether a Hessian that is wrong by a tenth could agree as well."""
        return self.hessian_share < 10.0 * self._agreement

    @property
    def _hessian(self) -> str:
        said = f"without it the exact hypergradient differs by {self.hessian_share:.2g} of its size"
        if not self._hidden:
            return said
        return (
            f"{said}, and agreement is to {self._agreement:.1g}, so it means little: a Hessian "
            "that is wrong by a tenth or more would agree as well. Take a slice with less weight "
            "decay or damping relative to its curvature, or a smaller rtol and a solver that "
            "goes further"
        )

    @property
    def _others(self) -> str:
        return (
            f"the losses depend on {', '.join(self.unlisted[:5])}"
            + f" and {len(self.unlisted) - 5} more" * (len(self.unlisted) > 5)
            + ", which require a gradient and are no inner parameters. If training moves them, the "
            "hypergradient leaves that out: make them parameters of the model, or pass wrap the "
            "optimizer that moves them. If not, freeze them by requires_grad_(False)"
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
                f"  {_number(row.exact, 14, 6)}  {_number(row.finite_difference, 14, 6)}"
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
