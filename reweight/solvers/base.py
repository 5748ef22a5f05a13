"""What a linear solver takes and gives back."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, ClassVar

import torch
from torch import Tensor

from reweight._trees import flatten, max_abs, power_of_two, rounding, unflatten

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
        "train the inner problem further"
    )
    ILL_CONDITIONED = (
        "the residual is small, but directions of small curvature can hide a larger error behind "
        "it; solve further (a lower rtol, more steps, terms or columns), or add damping"
    )
    DISJOINT = (
        "the outer loss uses no parameter that the inner loss moves, so the hypergradient is zero; "
        "is it the loss of another head or model than the losses that get weights, or only of "
        "rows of tables that the train batch does not read?"
    )
    NOISY_PRODUCTS = (
        "the system is solved for products that carry an error of their own, as finite differences "
        "do; use float64, or layers that can be differentiated twice"
    )
    UNCONFIRMED = (
        "the solver reports an answer, but the residual measured afterwards is too large: it "
        "tests something else, or rounding got in between; lower rtol, use float64 or add damping"
    )
    APPROXIMATED = (
        "the Hessian was replaced by a multiple of the identity: the direction is only right "
        "where all curvatures are alike; use Neumann or ConjugateGradient for more"
    )
    LOW_RANK = (
        "the Hessian was replaced by a low-rank matrix plus damping: the direction is only right "
        "where the rest of the Hessian is like that damping; raise rank, or choose a damping near "
        "the curvatures that are left out"
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
        smallest_curvature: an estimate of the smallest eigenvalue of ``A`` that ``b`` has a part
            in, where the solver made one. It comes from above.
    """

    value: Any
    status: Status
    curvature: float | None = None
    detail: str = ""
    smallest_curvature: float | None = None


class LinearSolver(ABC):
    """A frozen value that solves ``A u = b`` given only products with a symmetric ``A``.

    Subclasses implement :meth:`solve_scaled`, which sees one tensor: a dict is joined to a vector
    first, of its widest type and of single precision at least, so that inner products are no
    coarser than the products with ``A``. Then ``b`` is divided by a power of two, so that
    gradients of size 1e-30 or 1e30 neither underflow nor overflow in inner products; powers of two
    make that exact. A zero ``b`` has the exact answer zero.

    Any other callable ``(matvec, b) -> Solution`` serves as a solver just as well.

    Attributes:
        keeps_products: whether a product is looked at after the next one was asked for. Where it is
            not, all products may come in the same memory.
    """

    keeps_products: ClassVar[bool] = True

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
        eps = rounding(b)
        if isinstance(b, dict):
            flat = self.solve_flat(lambda v: flatten(matvec(unflatten(v, b))), flatten(b), eps)
            return replace(flat, value=unflatten(flat.value, b))
        return self.solve_flat(matvec, b, eps)

    def solve_flat(self, matvec: Callable[[Tensor], Tensor], b: Tensor, eps: float) -> Solution:
        """Solve for one tensor, with products that carry a relative rounding error of ``eps``."""
        largest = max_abs(b)
        if not math.isfinite(largest):
            raise FloatingPointError(
                "the right-hand side of the linear system is not finite (largest entry "
                f"{largest}); the outer loss has a NaN or infinite gradient: look at the dev batch "
                "and at the model's outputs on it"
            )
        if largest == 0.0:
            return Solution(torch.zeros_like(b), Status.CONVERGED)
        unit = power_of_two(b, largest)
        solution = self.solve_scaled(matvec, b * (1.0 / unit), eps)
        return replace(solution, value=solution.value * unit)

    @abstractmethod
    def solve_scaled(self, matvec: Callable[[Tensor], Tensor], b: Tensor, eps: float) -> Solution:
        """Solve for a right-hand side whose largest entry lies in [0.5, 1).

        At the very ends of the range of the floating-point type it may lie elsewhere. Products
        carry a relative rounding error of about ``eps``.
        """
