"""What a linear solver takes and gives back."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from reweight._trees import (
    flatten,
    is_uniform,
    max_abs,
    power_of_two,
    scale,
    unflatten,
    zeros_like,
)

Matvec = Callable[[Any], Any]


class Status(str, Enum):
    """How a solve ended. The value of a member is the sentence a person should read."""

    CONVERGED = "the linear system is solved to the tolerance"
    TRUNCATED = (
        "the series was cut before it converged: a regularised direction, not the inverse; "
        "for the inverse raise num_terms or use ConjugateGradient"
    )
    MAX_STEPS = (
        "the step limit came before the tolerance; raise max_steps, or add damping to make the "
        "system better conditioned"
    )
    DIVERGING = (
        "the terms of the series grow: the step size is above 2/λmax; lower step_size or use "
        'step_size="auto"'
    )
    NEGATIVE_CURVATURE = (
        "the Hessian is not positive definite along a search direction: it is flat there, or the "
        "inner problem is not at a minimum; add damping of at least the negative curvature, or "
        "train the inner problem further; what was solved before that direction is returned"
    )
    APPROXIMATED = (
        "the Hessian was replaced by a multiple of the identity: the direction is only right "
        "where all curvatures are alike; use Neumann or ConjugateGradient for more"
    )

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Solution:
    """The answer of a solver to ``A u = b``.

    Attributes:
        value: ``u``, a tensor or a dict of tensors like ``b``.
        status: how the solve ended.
        curvature: an estimate of the largest eigenvalue of ``A``, where the solver made one.
        detail: numbers that belong to the status (a growth factor, a step size), or ``""``.
    """

    value: Any
    status: Status
    curvature: float | None = None
    detail: str = ""


class LinearSolver(ABC):
    """A frozen value that solves ``A u = b`` given only products with a symmetric ``A``.

    Subclasses implement :meth:`solve_scaled`. Calling the solver first divides ``b`` by a power
    of two, so that gradients of size 1e-30 or 1e30 neither underflow nor overflow in the inner
    products; powers of two make that exact. A zero ``b`` has the exact answer zero.

    Any other callable ``(matvec, b) -> Solution`` serves as a solver just as well.
    """

    def __call__(self, matvec: Matvec, b: Any) -> Solution:
        """Solve ``A u = b``.

        Args:
            matvec: ``v -> A v``, linear, symmetric; ``v`` has the structure of ``b``.
            b: the right-hand side, a tensor or a dict of tensors.

        Returns:
            The solution, in the structure of ``b``.

        Raises:
            FloatingPointError: ``b`` is not finite.
        """
        if isinstance(b, dict) and is_uniform(b):
            # One long vector: a handful of operations per step instead of a handful per leaf.
            flat = self(lambda v: flatten(matvec(unflatten(v, b))), flatten(b))
            return replace(flat, value=unflatten(flat.value, b))
        largest = max_abs(b)
        if not math.isfinite(largest):
            raise FloatingPointError(
                "the right-hand side of the linear system is not finite (largest entry "
                f"{largest}); the outer loss has a NaN or infinite gradient: look at the dev batch "
                "and at the model's outputs on it"
            )
        if largest == 0.0:
            return Solution(zeros_like(b), Status.CONVERGED)
        unit = power_of_two(b)
        solution = self.solve_scaled(matvec, scale(1.0 / unit, b))
        return replace(solution, value=scale(unit, solution.value))

    @abstractmethod
    def solve_scaled(self, matvec: Matvec, b: Any) -> Solution:
        """Solve for a right-hand side whose largest entry lies in [0.5, 1).

        At the very ends of the range of the floating-point type it may lie elsewhere.
        """
