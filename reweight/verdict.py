"""What is known about a solve, measured apart from the solver."""

from __future__ import annotations

from dataclasses import dataclass

from reweight.solvers import Status

# A solve whose true relative residual is at most this counts as an answer to the linear system, ...
TRUSTED_RESIDUAL = 1e-3
# ... if the flattest direction met does not turn that residual into a larger error than this.
TRUSTED_ERROR = 1e-2

_BY_DESIGN = (Status.TRUNCATED, Status.APPROXIMATED, Status.LOW_RANK)


@dataclass(frozen=True)
class SolveInfo:
    """The verdict on one solve, measured apart from the solver.

    Attributes:
        relative_residual: ``‖v − (H + damping)u‖/‖v‖`` of the answer, recomputed. With finite
            differences, their own uncertainty is added.
        num_hvps: Hessian-vector products that the solver asked for; the verdict makes one more for
            the residual, and up to three where that is small enough to be trusted.
        status: how the solve ended; ``str(status)`` is the advice.
        curvature: the largest curvature met, damping included: an estimate of λmax from below where
            the Hessian is positive definite. ``None`` if no product was made.
        hvp_mode: ``"autograd"``, ``"func"`` or ``"finite_difference"``; ``"none"`` if the dev
            gradient was zero, or the batch without weighted samples, and nothing had to be solved.
        smallest_curvature: the smallest Rayleigh quotient ``vᵀHv/vᵀv`` met, damping included; with
            ``Nystrom`` also what it takes for the curvature beyond its columns.
        detail: the numbers that belong to the status.
        caveat: why the operator itself is not the Hessian of the inner loss, or ``""``: a second
            derivative that finite differences contradict.
        error_estimate: ``‖residual‖/(smallest_curvature·‖u‖)``, the relative error of ``u`` that
            the residual can hide; ``None`` where no positive curvature was met. Where the residual
            is small, the curvature along the residual itself is looked at too.
    """

    relative_residual: float
    num_hvps: int
    status: Status
    curvature: float | None
    hvp_mode: str
    smallest_curvature: float | None = None
    detail: str = ""
    caveat: str = ""
    error_estimate: float | None = None

    @property
    def trustworthy(self) -> bool:
        """Whether ``u`` solves the system.

        That is: a residual of at most 1e-3, an error of at most 1e-2 to expect behind it, no
        direction of negative curvature met, and no caveat. Whether the inner parameters are at a
        minimum is not looked at: between two outer steps they never quite are.
        """
        return (
            self.relative_residual <= TRUSTED_RESIDUAL
            and not self.curves_down
            and not self._ill_conditioned
            and not self.caveat
        )

    @property
    def message(self) -> str:
        """One sentence: what was reached, and if that is not an answer, why and what to do."""
        if self.hvp_mode == "none":
            reason = self.status if self.status is Status.DISJOINT else self.detail
            return f"trustworthy: {reason or 'nothing had to be solved'}"
        numbers = f"relative residual {self.relative_residual:.2g} after {self.num_hvps} HVPs"
        if self.trustworthy:
            return f"trustworthy: {numbers}"
        if self.caveat:
            return f"not a hypergradient: {self.caveat}"
        status, detail = self.status, self.detail
        if self.curves_down:
            status = Status.NEGATIVE_CURVATURE
            met = f"a curvature of {self.smallest_curvature:.3g} was met"
            detail = f"{detail}; {met}" if detail else met
        elif self.relative_residual <= TRUSTED_RESIDUAL:
            status = Status.ILL_CONDITIONED
            numbers += f", an error of {self.error_estimate:.2g} is to be expected behind it"
        detail = f" ({detail})" if detail else ""
        kind = "not an exact hypergradient"
        if status in _BY_DESIGN:
            kind += ", by choice of solver"
        return f"{kind}: {numbers}; {status}{detail}"

    @property
    def curves_down(self) -> bool:
        """Whether a direction of negative curvature was met, beyond rounding."""
        if self.smallest_curvature is None or self.curvature is None:
            return False
        # A singular Hessian meets quotients of either sign at rounding size.
        return self.smallest_curvature < -1e-6 * abs(self.curvature)

    @property
    def _ill_conditioned(self) -> bool:
        return self.error_estimate is not None and self.error_estimate > TRUSTED_ERROR
