"""The verdict on a linear solve, measured independently of the solver."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from reweight.solvers import Status

Matrix = Literal["hessian", "gauss_newton"]
# How a first-order step differentiates per-sample losses, in the order in which hvp="auto" tries.
Way = Literal["forward", "differences"]
WAYS: tuple[Way, ...] = ("forward", "differences")
_HOW: dict[str, str] = {
    "forward": "by forward mode",
    "differences": "by central differences",
}

# A solution is trusted if its true relative residual is at most this ...
TRUSTED_RESIDUAL = 1e-3
# ... and the error estimated from the smallest curvature met is at most this.
TRUSTED_ERROR = 1e-2
# Every network has negative curvature. Beyond this residual the direction is useless.
_USELESS_RESIDUAL = 10.0
# Curvatures below this share of the largest one are rounding errors, of either sign.
_FLAT = 1e-6


@dataclass(frozen=True)
class Comparison:
    """The last comparison of second derivatives with differences of gradients.

    Attributes:
        age: how many outer steps ago it was made; 0 is this one; ``None`` if it failed.
        failure: why it could not be made, or ``""``.
        first_order: whether derivatives of losses along one direction were compared with gradients.
    """

    age: int | None
    failure: str = ""
    first_order: bool = False

    def __str__(self) -> str:
        what, reference = "second derivatives", "differences"
        if self.first_order:
            what, reference = "the derivatives of the losses", "gradients"
        if self.age is None:
            return f"{what} could not be compared with {reference} ({self.failure})"
        when = {0: "in this step", 1: "one step ago"}.get(self.age, f"{self.age} steps ago")
        return f"{what} compared {when}"


@dataclass(frozen=True)
class LastResidual:
    """The residual of the last outer step in which it was measured.

    Attributes:
        value: the relative residual.
        age: how many outer steps ago it was measured, at least 1.
    """

    value: float
    age: int

    def __str__(self) -> str:
        when = "one step ago" if self.age == 1 else f"{self.age} steps ago"
        return f"{self.value:.2g} {when}"


@dataclass(frozen=True)
class SolveInfo:
    """The verdict on one solve, measured independently of the solver; for ``print``.

    Attributes:
        relative_residual: ``‖v − (H + damping)u‖/‖v‖``, computed from the solution. With finite
            differences, their uncertainty is added. ``None`` if it was not measured in this step:
            see ``verdict_every`` of :class:`reweight.ImplicitHypergradient`. In a first-order step,
            which makes no product with the Hessian, it never is.
        num_hvps: Hessian-vector products that the solver used. Where the residual is measured, the
            verdict uses one more for it, and up to three more if it is small enough to be trusted.
        status: how the solve ended; ``str(status)`` is a sentence on it.
        curvature: the largest curvature met, damping included: a lower bound of λmax where the
            Hessian is positive definite. ``None`` if no product was made.
        hvp_mode: ``"autograd"``, ``"func"`` or ``"finite_difference"``; of a first-order step
            ``"forward"`` or ``"differences"``; ``"none"`` if nothing had to be solved, because the
            dev gradient was zero or the batch had no weighted samples.
        smallest_curvature: the smallest Rayleigh quotient ``vᵀHv/vᵀv`` met, damping included; with
            ``Nystrom`` also the curvature it assumes outside of its columns' span.
        detail: numbers that belong to the status; and of a compiled step, when it was last compared
            with an eager one.
        caveat: why the operator is not the Hessian of the inner loss, or ``""``: finite differences
            contradict a second derivative.
        error_estimate: ``‖residual‖/(smallest_curvature·‖u‖)``, the relative error of ``u`` that
            the residual can hide; ``None`` where no positive curvature was met. Where the residual
            is small, the curvature along the residual is measured too.
        comparison: the last comparison of second derivatives with differences of gradients;
            ``None`` where the problem is given as functions, which are not compared.
        last_residual: where the residual was not measured in this step, the one that was measured
            last, if there is one.
        matrix: ``H``: ``"hessian"``, or ``"gauss_newton"``, which leaves out the curvature of the
            model; then everything here is about that matrix.
    """

    relative_residual: float | None
    num_hvps: int
    status: Status
    curvature: float | None
    hvp_mode: str
    smallest_curvature: float | None = None
    detail: str = ""
    caveat: str = ""
    error_estimate: float | None = None
    comparison: Comparison | None = field(default=None, compare=False)
    last_residual: LastResidual | None = field(default=None, compare=False)
    matrix: Matrix = "hessian"

    @property
    def trustworthy(self) -> bool:
        """Whether ``u`` solves the system.

        That means: a residual that was measured in this step and is at most 1e-3, an estimated
        error of at most 1e-2, no direction of negative curvature, no caveat, and second derivatives
        that were compared. Whether the inner parameters are at a minimum is not tested: between two
        outer steps they never are exactly.
        A first-order step solves no system, so it is never trustworthy in this sense.
        """
        return (
            self._is_solved
            and not self.curves_down
            and not self._ill_conditioned
            and not self.caveat
            and not self._unexamined
        )

    @property
    def message(self) -> str:
        """One sentence: the kind of step, what was reached, and what to do where it is not that."""
        return f"{self._kind}: {'; '.join([*self._clauses(), *self._other_matrix()])}"

    def __str__(self) -> str:
        if self.hvp_mode == "none" or self.first_order:
            return self.message
        numbers = [f"products by {self.hvp_mode}"]
        if self.curvature is not None:
            least = self.curvature if self.smallest_curvature is None else self.smallest_curvature
            numbers.append(f"curvatures met from {least:.3g} to {self.curvature:.3g}")
        if self.error_estimate is not None and math.isfinite(self.error_estimate):
            numbers.append(f"estimated error {self.error_estimate:.2g}")
        return f"{self.message}\n{', '.join(numbers)}"

    @property
    def _kind(self) -> str:
        if self.hvp_mode == "none" and (self.status.alarming or self.caveat):
            return "a hypergradient of zero"
        if self.hvp_mode == "none" or self.trustworthy:
            return "trustworthy"
        if self.caveat:
            return "not a hypergradient"
        if self.first_order:
            return "first-order, by choice"
        if self.unexamined:
            return "not examined"
        return (
            f"{self.status.design}, as chosen" if self._as_chosen else "not an exact hypergradient"
        )

    def _clauses(self) -> list[str]:
        """The parts of the message after its kind."""
        if self.hvp_mode == "none":
            reason = self.caveat or self.detail or (self.status if self.status.alarming else "")
            return [str(reason) or "nothing had to be solved"]
        compared = [str(self.comparison)] if self.comparison else []
        if self.first_order:
            detail = f" ({self.detail})" if self.detail else ""
            how = f"each loss is differentiated along u {_HOW[self.hvp_mode]}{detail}"
            return [self.caveat] if self.caveat else [how, str(self.status), *compared]
        numbers = self._numbers()
        if self.trustworthy:
            return [numbers, *compared]
        if self.caveat:
            return [self.caveat]
        if self.unexamined:
            return [numbers, *compared]
        detail = f" ({self.detail})" if self.detail else ""
        if self._as_chosen:
            clauses = [numbers + detail, str(self.status)]
            if self.curves_down:
                clauses.append(
                    "the Hessian is not positive definite, like that of most networks (curvature "
                    f"{self.smallest_curvature:.3g}): only its inverse would need damping"
                )
            return [*clauses, *compared]
        if self.curves_down:
            met = f"a curvature of {self.smallest_curvature:.3g} was met"
            detail = f" ({self.detail}; {met})" if self.detail else f" ({met})"
            return [numbers, f"{Status.NEGATIVE_CURVATURE}{detail}", *compared]
        if self._is_solved:
            numbers += f", estimated error {self.error_estimate:.2g}"
            return [numbers, f"{Status.ILL_CONDITIONED}{detail}", *compared]
        return [numbers, f"{self.status}{detail}", *compared]

    def _other_matrix(self) -> list[str]:
        if self.matrix == "hessian" or self.hvp_mode == "none" or self.first_order:
            return []
        return ["with the Gauss-Newton matrix in the place of the Hessian"]

    def _numbers(self) -> str:
        """The residual, or why there is none, and the number of products."""
        if self.relative_residual is not None:
            return f"relative residual {self.relative_residual:.2g} after {self.num_hvps} HVPs"
        last = f"; {self.last_residual}" if self.last_residual else ""
        return f"residual not measured in this step{last}, {self.num_hvps} HVPs"

    @property
    def _is_solved(self) -> bool:
        """Whether a residual was measured in this step, and is small."""
        return self.relative_residual is not None and self.relative_residual <= TRUSTED_RESIDUAL

    @property
    def first_order(self) -> bool:
        """Whether the losses were differentiated along one direction, without the Hessian."""
        return self.hvp_mode in WAYS

    @property
    def _as_chosen(self) -> bool:
        """Whether the choice of the solver explains that the system is not solved."""
        return self.status.by_design and not self._is_solved

    @property
    def curves_down(self) -> bool:
        """Whether a direction of negative curvature was met, beyond rounding."""
        if self.smallest_curvature is None or self.curvature is None:
            return False
        return self.smallest_curvature < -_FLAT * abs(self.curvature)

    @property
    def alarming(self) -> bool:
        """Whether the user is to be warned: no choice of a solver explains this ending."""
        residual = self.relative_residual
        useless = residual is not None and residual > _USELESS_RESIDUAL
        return self.status.alarming or (self.status is Status.NEGATIVE_CURVATURE and useless)

    @property
    def unexamined(self) -> bool:
        """Whether the system is solved, for products that could not be compared."""
        return self._unexamined and self._is_solved

    @property
    def _unexamined(self) -> bool:
        return self.comparison is not None and self.comparison.age is None

    @property
    def _ill_conditioned(self) -> bool:
        return self.error_estimate is not None and self.error_estimate > TRUSTED_ERROR
