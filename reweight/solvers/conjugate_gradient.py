"""Conjugate gradients that stop at negative curvature."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from reweight._tensors import dot, inner_products, read
from reweight.solvers._fields import positive, whole
from reweight.solvers._products import check_product
from reweight.solvers.base import LinearSolver, Solution
from reweight.solvers.status import Status

# The assumed relative error of a product with A, in units of rounding. A flat direction has a
# computed curvature of that size, of either sign, and a step along it would be noise.
_PRODUCT_ERROR = 32.0


@dataclass(frozen=True)
class ConjugateGradient(LinearSolver):
    """Hestenes and Stiefel's method for symmetric positive definite ``A``, residual-smoothed.

    Stops when ``‖b − A u‖ ≤ rtol·‖b‖``, after ``max_steps`` products, or at a direction ``p`` with
    ``pᵀA p ≤ 0`` (to rounding). In the last case the iterate before ``p`` is returned; if that is
    the very first direction, ``b`` itself is, as in Newton-CG (Nocedal and Wright, 2006, Algorithm
    7.1), because a zero hypergradient would stop the outer problem without an error.

    Every iterate is averaged with those before it so that its residual is the smallest possible
    (Zhou and Walker, "Residual smoothing techniques for iterative methods", SIAM J. Sci. Comput.,
    1994). That matters where ``A`` is flat in directions that ``b`` has, as with more parameters
    than samples: there the plain iterates grow without bound, and the averaged ones approach a
    least-squares solution.

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

    keeps_products: ClassVar[bool] = False
    checks_products: ClassVar[bool] = True
    max_steps: int = 10
    rtol: float = 1e-5

    def __post_init__(self) -> None:
        whole("ConjugateGradient", "max_steps", self.max_steps, 1)
        positive("ConjugateGradient", "rtol", self.rtol)

    def solve_scaled(self, matvec: Callable[[Tensor], Tensor], b: Tensor, eps: float) -> Solution:
        """Run the recurrence from ``u = 0``."""
        # Updated in place, to save passes over memory; the operator may keep the directions.
        u, best = torch.zeros_like(b), torch.zeros_like(b)
        residual, left, direction = b.clone(), b.clone(), b
        ((squared,),) = read(inner_products((b, b)))
        target = self.rtol**2 * squared
        spectrum = _Spectrum()
        stretch = 0.0
        for step in range(self.max_steps):
            product = matvec(direction)
            before = inner_products((direction, product), (direction, direction), (left, left))
            # The step length stays on the device, so that each step reads once. Where the curvature
            # turns out not to be positive, nothing that this moves is used.
            advance = squared / before[0]
            u.addcmul_(direction, advance)
            residual.addcmul_(product, advance, value=-1.0)
            after = inner_products((residual, residual), (left, residual))
            (curvature, length, smoothed), (fresh, along) = read(before, after)
            check_product(step + 1, curvature)
            if curvature > 0.0:
                # Residuals are orthogonal, so ‖Ap‖² = (‖r‖² + ‖r − αAp‖²)/α². Lower bounds of λmax
                # are ‖Ap‖/‖p‖ and ‖Ap‖²/pᵀAp.
                size = math.sqrt(squared + fresh) * (curvature / squared)
                stretch = max(stretch, size / math.sqrt(length), size * (size / curvature))
            if curvature <= _PRODUCT_ERROR * eps * stretch * length:
                quotient = curvature / length
                return Solution(
                    best if step else b,
                    Status.NEGATIVE_CURVATURE,
                    max(spectrum.ends()[1], quotient) or None,
                    f"pᵀAp/pᵀp = {quotient:.3g} in step {step + 1}, "
                    + ("the iterate before it is returned" if step else "b is returned"),
                    min(spectrum.ends()[0], quotient) if step else quotient,
                )
            spectrum.add(squared / curvature, fresh / squared)
            if fresh <= target:
                return spectrum.solution(u, Status.CONVERGED)
            # The point between the best iterate and the new one where the residual is smallest.
            apart = smoothed - 2.0 * along + fresh
            share = (smoothed - along) / apart if apart > 0.0 else 1.0
            best.lerp_(u, share)
            left.lerp_(residual, share)
            if (smoothed * fresh - along * along) <= target * apart and dot(left, left) <= target:
                return spectrum.solution(best, Status.CONVERGED)
            direction = torch.add(residual, direction, alpha=fresh / squared)
            squared = fresh
        return spectrum.solution(best, Status.MAX_STEPS)


@dataclass
class _Spectrum:
    """The Lanczos matrix of the steps taken (Golub and Van Loan, §11.3.5)."""

    diagonal: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)
    carried: float = 0.0

    def add(self, advance: float, shrinkage: float) -> None:
        """Add one step of conjugate gradients with α = ``advance`` and β = ``shrinkage``."""
        self.diagonal.append(1.0 / advance + self.carried)
        self.beside.append(math.sqrt(shrinkage) / advance)
        self.carried = shrinkage / advance

    def ends(self) -> tuple[float, float]:
        """The smallest and the largest eigenvalue of ``A`` in the Krylov space so far."""
        if not self.diagonal:
            return 0.0, 0.0
        beside = self.beside[: len(self.diagonal) - 1]
        matrix = np.diag(self.diagonal) + np.diag(beside, 1) + np.diag(beside, -1)
        values = np.linalg.eigvalsh(matrix)
        return float(values[0]), float(values[-1])

    def solution(self, value: Tensor, status: Status) -> Solution:
        """A solution with these eigenvalues as its curvatures."""
        smallest, largest = self.ends()
        return Solution(value, status, largest, smallest_curvature=smallest)
