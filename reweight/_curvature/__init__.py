"""The linear system of an outer step: its matrix, its solution, and the verdict on that."""

from reweight._curvature.callables import Solver
from reweight._curvature.gauss_newton import (
    Forward,
    OutputHessian,
    Outputs,
    gauss_newton,
    jacobian_by_func,
    jacobian_of_graph,
    pull_of_graph,
)
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
from reweight._curvature.stated import Stated
from reweight._curvature.system import Function, Slope, System

__all__ = [
    "MODES",
    "Forward",
    "Function",
    "Gradients",
    "Linearisation",
    "Mode",
    "Objective",
    "OutputHessian",
    "Outputs",
    "Partial",
    "Slope",
    "Solved",
    "Solver",
    "Stated",
    "System",
    "from_graph",
    "gauss_newton",
    "gradients_of",
    "jacobian_by_func",
    "jacobian_of_graph",
    "pull_of_graph",
    "solve",
    "with_finite_difference",
    "with_func",
    "without_solve",
]
