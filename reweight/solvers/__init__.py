"""Solvers of ``A u = b`` that only ever multiply with ``A``."""

from reweight.solvers.base import LinearSolver, Solution, Status
from reweight.solvers.conjugate_gradient import ConjugateGradient
from reweight.solvers.identity import Identity
from reweight.solvers.neumann import Neumann
from reweight.solvers.nystrom import Nystrom
from reweight.solvers.power_iteration import PowerIteration

__all__ = [
    "ConjugateGradient",
    "Identity",
    "LinearSolver",
    "Neumann",
    "Nystrom",
    "PowerIteration",
    "Solution",
    "Status",
]
