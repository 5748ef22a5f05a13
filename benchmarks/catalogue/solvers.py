"""The solvers that every problem is tried with, and what may be expected of their answers."""

from __future__ import annotations

from typing import Any

from benchmarks.catalogue.problems import Bilevel
from reweight import (
    ConjugateGradient,
    Identity,
    ImplicitHypergradient,
    Neumann,
    Nystrom,
    SolveInfo,
)
from reweight.verdict import TRUSTED_ERROR

# What every problem is tried with: the solver, and a diagonal preconditioner or not.
SOLVERS: dict[str, tuple[Any, bool]] = {
    "Identity()": (Identity(), False),
    "Neumann(3)": (Neumann(3), False),
    "Neumann(3, step_size=1.0)": (Neumann(3, step_size=1.0), False),
    "Neumann(30, step_size=1.0)": (Neumann(30, step_size=1.0), False),
    "Neumann(500)": (Neumann(500), False),
    "Neumann(500), preconditioned": (Neumann(500), True),
    "CG()": (ConjugateGradient(), False),
    "CG(200, rtol=1e-10)": (ConjugateGradient(200, rtol=1e-10), False),
    "CG(200, rtol=1e-3)": (ConjugateGradient(200, rtol=1e-3), False),
    "CG(200, rtol=1e-10), preconditioned": (ConjugateGradient(200, rtol=1e-10), True),
    "Nystrom(4)": (Nystrom(4), False),
    "Nystrom(100, 1e-6)": (Nystrom(100, damping=1e-6), False),
}


def allowed_error(info: SolveInfo) -> float:
    """How far from the oracle an answer may be that its verdict calls trustworthy.

    The error that the verdict itself expects, which comes from the flattest direction met and so
    may be a little short, but never more than what trustworthy means; and rounding, of condition
    numbers up to 1e4.
    """
    return min(3.0 * (info.error_estimate or TRUSTED_ERROR) + 1e-11, TRUSTED_ERROR)


def strategy(name: str, problem: Bilevel) -> ImplicitHypergradient:
    """The row of the table, for a problem; the preconditioner is that of Jacobi."""
    solver, preconditioned = SOLVERS[name]
    if not preconditioned:
        return ImplicitHypergradient(solver, problem.damping)
    diagonal = problem.hessian().diagonal().abs().clamp_min(1e-3)
    return ImplicitHypergradient(
        solver, problem.damping, preconditioner=problem.parted(1.0 / diagonal, problem.params)
    )
