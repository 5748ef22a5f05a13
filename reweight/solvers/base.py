"""What a linear solver takes and returns."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from reweight._tensors import flatten, max_abs, power_of_two, rounding, unflatten
from reweight.solvers.status import Status

Matvec = Callable[[Any], Any]
# Right-hand sides whose largest entry is in this range have squares that every type can hold.
PLAIN = (1e-6, 1e6)


@dataclass(frozen=True)
class Solution:
    """The answer of a solver to ``A u = b``.

    Attributes:
        value: ``u``, a tensor or a dict of tensors like ``b``.
        status: how the solve ended.
        curvature: an estimate of the largest eigenvalue of ``A``, where the solver made one.
        detail: numbers that belong to the status (a growth factor, a step size), or ``""``.
        smallest_curvature: an upper bound of the smallest eigenvalue of ``A``, among those in whose
            eigenvectors ``b`` has a component, where the solver made one.
        least: a lower bound of all eigenvalues of ``A``, where the solver knows one.
    """

    value: Any
    status: Status
    curvature: float | None = None
    detail: str = ""
    smallest_curvature: float | None = None
    least: float | None = None


class LinearSolver(ABC):
    """A solver of ``A u = b`` that uses only products with the symmetric ``A``; a frozen value.

    Subclasses implement :meth:`solve_scaled`, which takes one tensor. A dict is flattened to one
    vector first, in the widest type of its tensors and in float32 at least, so that inner products
    are as accurate as the products with ``A``. A very large or small ``b`` is divided by a power of
    two, which is exact, so that gradients of size 1e-30 or 1e30 neither underflow nor overflow in
    inner products. A zero ``b`` has the exact answer zero.

    Any other callable ``(matvec, b) -> Solution`` serves as a solver just as well.

    Attributes:
        keeps_products: whether the solver uses a product after it has requested the next one. If
            not, all products may share one buffer.
        checks_products: whether the solver itself raises where a product is not finite, and its
            solution reports the curvatures of all products.
    """

    keeps_products: ClassVar[bool] = True
    checks_products: ClassVar[bool] = False

    @property
    def aims_at_inverse(self) -> bool:
        """Whether the solver is meant to reach ``A⁻¹b``, and not a truncation of it."""
        return True

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

    def solve_flat(
        self,
        matvec: Callable[[Tensor], Tensor],
        b: Tensor,
        eps: float,
        largest: float | None = None,
    ) -> Solution:
        """Solve for one tensor.

        Args:
            matvec: ``v -> A v``.
            b: the right-hand side, which is not changed.
            eps: the relative rounding error of products.
            largest: the largest absolute entry of ``b``, where it is known.
        """
        largest = max_abs(b) if largest is None else largest
        if not math.isfinite(largest):
            raise FloatingPointError(
                "the right-hand side of the linear system is not finite (largest entry "
                f"{largest}); the outer loss has a NaN or infinite gradient: look at the dev batch "
                "and at the model's outputs on it"
            )
        if largest == 0.0:
            return Solution(torch.zeros_like(b), Status.CONVERGED)
        if PLAIN[0] <= largest <= PLAIN[1]:
            return self.solve_scaled(matvec, b, eps)
        unit = power_of_two(b, largest)
        solution = self.solve_scaled(matvec, b * (1.0 / unit), eps)
        return replace(solution, value=solution.value * unit)

    @abstractmethod
    def solve_scaled(self, matvec: Callable[[Tensor], Tensor], b: Tensor, eps: float) -> Solution:
        """Solve for a right-hand side whose largest entry lies in [1e-6, 1e6].

        At the very ends of the range of the floating-point type it may lie elsewhere. Products
        carry a relative rounding error of about ``eps``. ``b`` is not to be changed.
        """
