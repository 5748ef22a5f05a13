"""The linear system of an outer step: its matrix, its solution, and the verdict on that."""

from reweight._curvature.callables import Solver
from reweight._curvature.linearise import (
    MODES,
    Linearisation,
    Mode,
    Objective,
    Partial,
    from_graph,
    with_finite_difference,
    with_func,
)
from reweight._curvature.solve import Solved, solve
from reweight._curvature.system import Function, System

__all__ = [
    "MODES",
    "Function",
    "Linearisation",
    "Mode",
    "Objective",
    "Partial",
    "Solved",
    "Solver",
    "System",
    "from_graph",
    "solve",
    "with_finite_difference",
    "with_func",
]
