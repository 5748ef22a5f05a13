"""The verdict on a solution: what its residual and the curvatures met say about it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from reweight._curvature.linearise import Mode
from reweight._curvature.operator import Operator
from reweight._tensors import Tree, check_finite, norm, power_of_two, rounding
from reweight.solvers import PLAIN, Solution, Status
from reweight.verdict import TRUSTED_RESIDUAL, SolveInfo

# The residual of a system that is solved to rounding, in units of rounding.
_ROUNDING_RESIDUAL = 64.0


@dataclass(frozen=True)
class Answer:
    """A solution, and the quantities from which its verdict is computed.

    Attributes:
        mode: mode of the products.
        operator: the matrix ``A``, with the curvatures that it has met.
        solution: what the solver returned.
        like: the parameters that the flat vectors are made of.
        preconditioned: whether the solver saw another operator than ``A``.
        fresh: whether each of the solver's products was with the Hessian of another batch.
        residual: what was measured, if it was.
        along: the smallest curvature met along an earlier residual, to be used in the place of a
            measurement; ``None`` to measure it.
    """

    mode: Mode
    operator: Operator
    solution: Solution
    like: Tree
    preconditioned: bool
    fresh: bool
    residual: Residual | None
    along: float | None = None


@dataclass(frozen=True)
class Residual:
    """The residual of a solution.

    Attributes:
        b: the right-hand side, flat.
        largest: its largest entry.
        u: the solution, flat.
        product: ``H u``, by name.
        value: ``b − A u``.
        doubt: size of the error of ``A u``.
    """

    b: Tensor
    largest: float
    u: Tensor
    product: Tree
    value: Tensor
    doubt: float


def judged(answer: Answer) -> SolveInfo:
    """The verdict on ``answer``.

    Raises:
        FloatingPointError: the product with the solution is not finite.
    """
    operator, solution = answer.operator, answer.solution
    largest, smallest = operator.largest, operator.smallest
    if not answer.preconditioned:
        # The solver's estimates are of A itself, so they count like products.
        largest = _extreme(max, largest, solution.curvature)
        smallest = _extreme(min, smallest, solution.smallest_curvature)
    info = SolveInfo(
        relative_residual=None,
        num_hvps=operator.count,
        status=solution.status,
        curvature=largest,
        hvp_mode=answer.mode,
        smallest_curvature=smallest,
        detail=solution.detail,
    )
    return info if answer.residual is None else _with_residual(info, answer, answer.residual)


def _with_residual(info: SolveInfo, answer: Answer, residual: Residual) -> SolveInfo:
    """The verdict with what the residual says."""
    b, u, left, doubt = residual.b, residual.u, residual.value, residual.doubt
    if not PLAIN[0] < residual.largest < PLAIN[1]:
        # Squares would underflow or overflow: measure everything in other units.
        unit = 1.0 / power_of_two(answer.like, residual.largest)
        b, u, left, doubt = b * unit, u * unit, left * unit, doubt * unit
    size, measured = norm(b), norm(left)
    total = measured + doubt
    if not math.isfinite(total):
        check_finite(
            "the product of the Hessian with the solution",
            residual.product,
            "the inner loss has no finite second derivative here",
        )
    status, detail, smallest = info.status, info.detail, info.smallest_curvature
    if status.final and total > TRUSTED_RESIDUAL * size:
        noisy = measured <= TRUSTED_RESIDUAL * size
        status = Status.NOISY_PRODUCTS if noisy else Status.UNCONFIRMED
    known = answer.solution.least is not None
    if not known and not answer.fresh and 0.0 < measured <= TRUSTED_RESIDUAL * size:
        # A small residual along directions of small curvature is a large error of u. A few more
        # products measure the curvature there.
        along = answer.along
        if along is None:
            along = answer.operator.smallest_along(left * (1.0 / measured))
        smallest = _extreme(min, smallest, along)
    if answer.fresh:
        note = "each product used another batch, the residual is that of the train batch"
        detail = f"{detail}; {note}" if detail else note
    return replace(
        info,
        relative_residual=total / size,
        status=status,
        smallest_curvature=smallest,
        detail=detail,
        error_estimate=_hidden_error(
            total / size, norm(u) / size, smallest, info.curvature, rounding(answer.like)
        ),
    )


def nothing_to_solve(detail: str, status: Status = Status.CONVERGED) -> SolveInfo:
    """The verdict where the solution is zero without a solve."""
    return SolveInfo(0.0, 0, status, None, "none", detail=detail)


def _extreme(
    choose: Callable[[list[float]], float], one: float | None, other: float | None
) -> float | None:
    known = [value for value in (one, other) if value is not None]
    return choose(known) if known else None


def _hidden_error(
    residual: float, size: float, smallest: float | None, largest: float | None, eps: float
) -> float | None:
    """The relative error that a residual can hide in ``u``.

    Args:
        residual: its size, relative to ``b``.
        size: of ``u``, relative to ``b``.
        smallest: the smallest curvature met.
        largest: the largest one.
        eps: the relative rounding error of a product.
    """
    if smallest is None or largest is None or size == 0.0:
        return None
    if smallest <= eps * abs(largest):
        # Flat, to rounding: a residual beyond rounding can hide any error.
        return math.inf if residual > _ROUNDING_RESIDUAL * eps else None
    return residual / (smallest * size)
