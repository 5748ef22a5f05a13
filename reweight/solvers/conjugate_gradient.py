"""Conjugate gradients that stop before they go wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from reweight._trees import axpy, dot, leaves, norm, zeros_like
from reweight.solvers._check import positive, whole
from reweight.solvers.base import LinearSolver, Matvec, Solution, Status

# What products with A are taken to be exact to, in units of the type's rounding. A flat direction
# shows curvature of that size, of either sign, and a step along it would be all noise.
_ROUNDING = 32.0


@dataclass(frozen=True)
class ConjugateGradient(LinearSolver):
    """Hestenes and Stiefel's method for symmetric positive definite ``A``, residual-smoothed.

    Stops when ``‖b − A u‖ ≤ rtol·‖b‖``, after ``max_steps`` products, or at a direction ``p`` with
    ``pᵀA p ≤ 0`` (to rounding). In the last case the iterate before ``p`` is returned; if that is
    the very first direction, ``b`` itself is, as in Newton-CG (Nocedal and Wright, 2006, Algorithm
    7.1), because a zero hypergradient would stop the outer problem in silence.

    Every iterate is averaged with those before it so that its residual is the smallest possible
    (Zhou and Walker, "Residual smoothing techniques for iterative methods", SIAM J. Sci. Comput.,
    1994). That matters where ``A`` is flat in directions that ``b`` has, as with more parameters
    than samples, or a parameter that only the outer loss uses: there the plain iterates grow
    without bound, and the averaged ones approach a least-squares solution.

    Args:
        max_steps: the largest number of products with ``A``.
        rtol: the relative residual to reach.

    Example:
        >>> import torch
        >>> A = torch.tensor([[2.0, 0.0], [0.0, 4.0]])
        >>> solution = ConjugateGradient()(lambda v: A @ v, torch.tensor([2.0, 4.0]))
        >>> solution.value.round(decimals=5), solution.status.name
        (tensor([1., 1.]), 'CONVERGED')
    """

    max_steps: int = 10
    rtol: float = 1e-5

    def __post_init__(self) -> None:
        whole("ConjugateGradient", "max_steps", self.max_steps, 1)
        positive("ConjugateGradient", "rtol", self.rtol)

    def solve_scaled(self, matvec: Matvec, b: Any) -> Solution:
        """Run the recurrence from ``u = 0``."""
        u = best = zeros_like(b)
        residual = left = direction = b
        squared = dot(b, b)
        target = self.rtol**2 * squared
        rounding = _ROUNDING * max(torch.finfo(leaf.dtype).eps for leaf in leaves(b))
        largest = stretch = 0.0
        for step in range(self.max_steps):
            product = matvec(direction)
            length = dot(direction, direction)
            curvature = dot(direction, product)
            largest = max(largest, curvature / length)
            stretch = max(stretch, norm(product) / math.sqrt(length))
            if curvature <= rounding * stretch * length:
                return Solution(
                    best if step else b,
                    Status.NEGATIVE_CURVATURE,
                    largest or None,
                    f"pᵀAp/pᵀp = {curvature / length:.3g} in step {step + 1}",
                )
            advance = squared / curvature
            u = axpy(advance, direction, u)
            residual = axpy(-advance, product, residual)
            previous, squared = squared, dot(residual, residual)
            if squared <= target:
                return Solution(u, Status.CONVERGED, largest)
            # The point between the best iterate and the new one where the residual is smallest.
            change = axpy(-1.0, residual, left)
            share = dot(left, change) / dot(change, change)
            best = axpy(share, axpy(-1.0, best, u), best)
            left = axpy(-share, change, left)
            if dot(left, left) <= target:
                return Solution(best, Status.CONVERGED, largest)
            direction = axpy(squared / previous, direction, residual)
        return Solution(best, Status.MAX_STEPS, largest)
