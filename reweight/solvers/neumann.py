"""The truncated Neumann series of the inverse Hessian."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from reweight._tensors import dot, inner_products, norm, read
from reweight.solvers._fields import positive, whole
from reweight.solvers._products import check_product
from reweight.solvers.base import LinearSolver, Solution
from reweight.solvers.krylov import lanczos
from reweight.solvers.status import Status

# The most products from which "auto" estimates the largest curvature. The terms of the series come
# from the same products. More than eight hardly improve the estimate.
_PROBE = 8
# The series counts as converged if its last term is below this share of b.
_CONVERGED = 1e-6
# From this many terms on, the series is meant to converge, and one product more for its residual
# costs little.
_LONG = 20


@dataclass(frozen=True)
class Neumann(LinearSolver):
    r"""``u = α Σ_{n=0..K} (I − αA)ⁿ b`` (Lorraine et al., AISTATS 2020; BIAO, Eq. 14 for α = 1).

    The factor ``α`` in front belongs to the series: ``A⁻¹ = α Σ (I − αA)ⁿ`` when
    ``‖I − αA‖ < 1``, that is for positive definite ``A`` and ``α < 2/λmax``. After ``K``
    terms, directions of curvature well below ``1/(αK)`` are not yet solved, which acts as
    regularisation.

    With ``step_size="auto"``, ``α = 1/λ`` with ``λ`` the largest curvature seen in the span of
    ``b, Ab, A²b, …``: the same ``K`` products give both the estimate and the terms, so it needs no
    more products than a fixed ``α``, and the result depends only on ``A`` and ``b``. Where a later
    term shows a larger curvature, ``α`` is lowered from there on.

    Args:
        num_terms: ``K``, also the number of products with ``A``. 0 gives ``α·b``, for which
            ``"auto"`` still makes one product.
        step_size: ``α``, or ``"auto"``.

    Example:
        >>> import torch
        >>> A = torch.tensor([[0.5, 0.0], [0.0, 1.0]])
        >>> Neumann(num_terms=60, step_size=1.0)(lambda v: A @ v, torch.tensor([1.0, 1.0])).value
        tensor([2., 1.])
    """

    keeps_products: ClassVar[bool] = False
    checks_products: ClassVar[bool] = True
    num_terms: int = 3
    step_size: float | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        whole("Neumann", "num_terms", self.num_terms, 0)
        if isinstance(self.step_size, str):
            if self.step_size != "auto":
                raise ValueError(
                    f'Neumann(step_size={self.step_size!r}): choose a number or "auto"'
                )
        else:
            positive("Neumann", "step_size", self.step_size)

    @property
    def aims_at_inverse(self) -> bool:
        """Whether the series is long; a short one is truncated on purpose."""
        return self.num_terms >= _LONG

    def on_fresh_batches(self) -> LinearSolver:
        """The solver to use where every product is with another operator.

        Products with several operators span no Krylov space, so ``"auto"`` then takes the largest
        curvature of the terms so far.
        """
        return _TermByTerm(self) if self.step_size == "auto" else self

    def solve_scaled(self, matvec: Callable[[Tensor], Tensor], b: Tensor, eps: float) -> Solution:
        """Sum the series, for "auto" in a basis of the Krylov space of ``A`` and ``b``."""
        if self.step_size != "auto":
            return self._with_fixed_step(matvec, b, float(self.step_size))
        krylov = lanczos(matvec, b, max(1, min(self.num_terms, _PROBE)), eps)
        series = Series(krylov.length)
        values = krylov.ritz_values()
        series.meet(float(np.abs(values).max()), float(values[0]))
        if series.curvature == 0.0:
            return _flat(b)
        step_size = 1.0 / series.curvature
        num_terms = self.num_terms
        if not krylov.invariant:
            num_terms = min(num_terms, krylov.num_products)
        coordinates = np.zeros(len(krylov.basis))
        coordinates[0] = krylov.length
        total = np.zeros(len(krylov.basis))
        for _ in range(num_terms):
            total += coordinates
            coordinates = coordinates - step_size * (krylov.matrix @ coordinates)
            series.add(float(np.linalg.norm(coordinates)))
        if num_terms == self.num_terms:
            return series.solution(krylov.lift(step_size * (total + coordinates)), step_size)
        u = krylov.lift(step_size * total)
        return self.go_on(matvec, series, krylov.lift(coordinates), u, done=num_terms)

    def _with_fixed_step(
        self, matvec: Callable[[Tensor], Tensor], b: Tensor, step_size: float
    ) -> Solution:
        total, numbers = fixed_terms(matvec, b, self.num_terms, step_size)
        ((first, *found),) = read(torch.cat(numbers))
        series = Series.of_fixed_step(first, found[::3], found[1::3], found[2::3])
        return series.solution(total, step_size)

    def go_on(
        self,
        matvec: Callable[[Tensor], Tensor],
        series: Series,
        residual: Tensor,
        u: Tensor,
        done: int = 0,
    ) -> Solution:
        """The rest of the series as ``u ← u + α r, r ← r − α A r``, where α may become smaller."""
        step_size = 1.0 / series.curvature if series.curvature else 0.0
        for step in range(done, self.num_terms):
            if series.size <= series.floor:
                break
            product = matvec(residual)
            series.meet_product(step + 1, norm(product), dot(residual, product))
            if series.curvature == 0.0:
                return _flat(residual)
            step_size = 1.0 / series.curvature
            u = torch.add(u, residual, alpha=step_size)
            residual = torch.add(residual, product, alpha=-step_size)
            series.add(norm(residual))
        if step_size == 0.0:
            return _flat(residual)
        return series.solution(torch.add(u, residual, alpha=step_size), step_size)


@dataclass(frozen=True)
class _TermByTerm(LinearSolver):
    """``Neumann(step_size="auto")`` where every product is with another operator."""

    keeps_products: ClassVar[bool] = False
    checks_products: ClassVar[bool] = True
    neumann: Neumann

    @property
    def aims_at_inverse(self) -> bool:
        """As the series itself."""
        return self.neumann.aims_at_inverse

    def solve_scaled(self, matvec: Callable[[Tensor], Tensor], b: Tensor, eps: float) -> Solution:
        """Sum the series with the largest curvature met so far."""
        series = Series(norm(b))
        if not self.neumann.num_terms:
            product = matvec(b)
            series.meet_product(1, norm(product), dot(b, product))
        return self.neumann.go_on(matvec, series, b, torch.zeros_like(b))


def fixed_terms(
    matvec: Callable[[Tensor], Tensor],
    b: Tensor,
    num_terms: int,
    step_size: float,
    products: Callable[..., Tensor] = inner_products,
) -> tuple[Tensor, list[Tensor]]:
    """The sum of the series with a fixed step size, and numbers on the device.

    These are ``‖b‖²``, and for each term ``t`` with the next one ``t'`` the numbers ``‖At‖²``,
    ``tᵀAt`` and ``‖t'‖²``.

    Args:
        matvec: ``v -> A v``.
        b: the right-hand side.
        num_terms: the number of products.
        step_size: of the series.
        products: computes inner products, see :func:`inner_products`.
    """
    term, total = b, step_size * b
    numbers = [products((b, b))]
    for _ in range(num_terms):
        product = matvec(term)
        numbers.append(products((product, product), (term, product)))
        term = torch.add(term, product, alpha=-step_size)
        total.add_(term, alpha=step_size)
        numbers.append(products((term, term)))
    return total, numbers


def _flat(b: Tensor) -> Solution:
    return Solution(b, Status.NEGATIVE_CURVATURE, None, "no curvature at all along b", 0.0)


class Series:
    """The norms of the terms, which show whether the series converges."""

    def __init__(self, first: float) -> None:
        self.first = self.size = first
        self.curvature = 0.0
        self.smallest: float | None = None
        # Terms below rounding are noise.
        self.floor = 1e-16 * self.first
        self.factor = 0.0
        self.growths = 0

    @classmethod
    def of_fixed_step(
        cls, first: float, sizes: Sequence[float], along: Sequence[float], left: Sequence[float]
    ) -> Series:
        """The series of the numbers of :func:`fixed_terms`, the products in order."""
        series = cls(math.sqrt(first))
        for step, (size, curved, after) in enumerate(zip(sizes, along, left, strict=True)):
            series.meet_product(step + 1, math.sqrt(size), curved)
            series.add(math.sqrt(after))
        return series

    def meet(self, largest: float, smallest: float) -> None:
        """Note a lower bound of the largest curvature's size, and a curvature."""
        self.curvature = max(self.curvature, largest)
        self.smallest = smallest if self.smallest is None else min(self.smallest, smallest)

    def meet_product(self, number: int, size: float, along: float) -> None:
        """Note what the product with the last term ``t`` shows.

        Args:
            number: of the product.
            size: ``‖At‖``.
            along: ``tᵀAt``.
        """
        check_product(number, size)
        if self.size > 0.0:
            self.meet(size / self.size, along / self.size / self.size)

    def add(self, size: float) -> None:
        """Note the size of the next term."""
        self.factor = size / self.size if self.size else 0.0
        self.growths = self.growths + 1 if self.factor > 1.0 else 0
        self.size = size

    def solution(self, value: Tensor | None, step_size: float) -> Solution:
        """The sum ``value`` with the status that the sizes of the terms imply."""
        curvature = self.curvature or None
        if self.size <= _CONVERGED * self.first:
            detail = f"step size {step_size:.3g}"
            return Solution(value, Status.CONVERGED, curvature, detail, self.smallest)
        too_long = step_size * self.curvature > 2.0
        if too_long or self.growths >= 2:
            detail = f"the last term is {self.factor:.3g} times the one before"
            if too_long:
                detail += (
                    f", curvature {self.curvature:.3g} was met, where the series does not grow "
                    f"with a step size of {1.0 / self.curvature:.3g}"
                )
            status = Status.DIVERGING if too_long else Status.NEGATIVE_CURVATURE
            return Solution(value, status, curvature, detail, self.smallest)
        left = self.size / self.first
        detail = f"step size {step_size:.3g}, last term {left:.2g} of the first"
        return Solution(value, Status.TRUNCATED, curvature, detail, self.smallest)
