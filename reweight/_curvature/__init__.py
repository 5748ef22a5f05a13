"""The linear system of an outer step: its matrix, its solution, and the verdict on that."""

from reweight._curvature.callables import Solver
from reweight._curvature.linearise import (
    MODES,
    Gradients,
    Linearisation,
    Mode,
    Objective,
    Partial,
    from_graph,
    gradients_of,
    with_finite_difference,
    with_func,
)
from reweight._curvature.solve import Solved, solve, without_solve
from reweight._curvature.system import Function, Slope, System

__all__ = [
    "MODES",
    "Function",
    "Gradients",
    "Linearisation",
    "Mode",
    "Objective",
    "Partial",
    "Slope",
    "Solved",
    "Solver",
    "System",
    "from_graph",
    "gradients_of",
    "solve",
    "with_finite_difference",
    "with_func",
    "without_solve",
]
