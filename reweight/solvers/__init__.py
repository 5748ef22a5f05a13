"""Solvers of ``A u = b``; all but one use products with ``A`` only."""

from reweight.solvers._products import check_product
from reweight.solvers.base import PLAIN, LinearSolver, Solution
from reweight.solvers.conjugate_gradient import ConjugateGradient
from reweight.solvers.identity import Identity
from reweight.solvers.krylov import Krylov, lanczos
from reweight.solvers.neumann import Neumann
from reweight.solvers.nystrom import Nystrom
from reweight.solvers.sample_space import SampleSpace
from reweight.solvers.status import Status
from reweight.solvers.traced import TracedSolver, UntraceableError, traced

__all__ = [
    "PLAIN",
    "ConjugateGradient",
    "Identity",
    "Krylov",
    "LinearSolver",
    "Neumann",
    "Nystrom",
    "SampleSpace",
    "Solution",
    "Status",
    "TracedSolver",
    "UntraceableError",
    "check_product",
    "lanczos",
    "traced",
]
