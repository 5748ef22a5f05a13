"""The truncated Neumann series of the inverse Hessian."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from reweight._trees import axpy, norm, scale
from reweight.solvers._check import positive, whole
from reweight.solvers._lanczos import lanczos
from reweight.solvers.base import LinearSolver, Matvec, Solution, Status

# Products from which "auto" estimates the largest curvature. The terms of the series come out of
# the same products, so they cost nothing; more than eight hardly sharpen the estimate.
_PROBE = 8
# A last term below this share of b is called converged.
_CONVERGED = 1e-6


@dataclass(frozen=True)
class Neumann(LinearSolver):
    r"""``u = α Σ_{n=0..K} (I − αA)ⁿ b`` (Lorraine et al., AISTATS 2020; BIAO, Eq. 14 for α = 1).

    The factor ``α`` in front belongs to the series: ``A⁻¹ = α Σ (I − αA)ⁿ`` when
    ``‖I − αA‖ < 1``, that is for positive definite ``A`` and ``α < 2/λmax``. After ``K`` terms
    directions of curvature well below ``1/(αK)`` are still damped, which acts as regularisation.

    With ``step_size="auto"``, ``α = 1/λ`` with ``λ`` the largest curvature seen in the span of
    ``b, Ab, A²b, …``: the same ``K`` products give both the estimate and the terms, so it costs no
    product more than a fixed ``α``, and depends on nothing but ``A`` and ``b``. Where a later term
    shows a larger curvature, ``α`` is lowered from there on.

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

    num_terms: int = 3
    step_size: float | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        whole("Neumann", "num_terms", self.num_terms, 0)
        if self.step_size != "auto":
            positive("Neumann", "step_size", self.step_size)

    def solve_scaled(self, matvec: Matvec, b: Any) -> Solution:
        """Sum the series term by term."""
        if self.step_size == "auto":
            return self._solve_auto(matvec, b)
        step_size = float(self.step_size)
        total = term = b
        series = _Series(norm(b))
        for _ in range(self.num_terms):
            product = matvec(term)
            series.saw(norm(product) / (series.size or 1.0))
            term = axpy(-step_size, product, term)
            total = axpy(1.0, term, total)
            series.add(norm(term))
        return series.verdict(scale(step_size, total), step_size)

    def _solve_auto(self, matvec: Matvec, b: Any) -> Solution:
        krylov = lanczos(matvec, b, max(1, min(self.num_terms, _PROBE)))
        curvature = float(np.abs(krylov.ritz_values()).max())
        if curvature == 0.0:
            return Solution(b, Status.NEGATIVE_CURVATURE, None, "no curvature at all along b")
        step_size = 1.0 / curvature
        num_terms = self.num_terms
        if not krylov.invariant:
            num_terms = min(num_terms, krylov.num_products)
        coordinates = np.zeros(len(krylov.basis))
        coordinates[0] = krylov.length
        total = coordinates.copy()
        series = _Series(krylov.length, curvature)
        for _ in range(num_terms):
            coordinates = coordinates - step_size * (krylov.matrix @ coordinates)
            total += coordinates
            series.add(float(np.linalg.norm(coordinates)))
        # From here on as u ← u + α r, r ← r − α A r: the same series, but α may change.
        u = krylov.lift(step_size * total)
        if num_terms < self.num_terms:
            residual = krylov.lift(coordinates)
            u = axpy(-step_size, residual, u)
            for _ in range(self.num_terms - num_terms):
                if series.size <= series.floor:
                    break
                product = matvec(residual)
                series.saw(norm(product) / series.size)
                step_size = 1.0 / series.curvature
                u = axpy(step_size, residual, u)
                residual = axpy(-step_size, product, residual)
                series.add(norm(residual))
            u = axpy(step_size, residual, u)
        return series.verdict(u, step_size)


class _Series:
    """Watches the sizes of the terms, which say whether the series converges."""

    def __init__(self, size: float, curvature: float = 0.0) -> None:
        self.first = self.size = size
        self.curvature = curvature
        # Terms below rounding carry nothing; going on would only amplify noise.
        self.floor = 1e-16 * size
        self.factor = 0.0
        self.growths = 0

    def saw(self, curvature: float) -> None:
        self.curvature = max(self.curvature, curvature)

    def add(self, size: float) -> None:
        self.factor = size / self.size if self.size else 0.0
        self.growths = self.growths + 1 if self.factor > 1.0 else 0
        self.size = size

    def verdict(self, value: Any, step_size: float) -> Solution:
        curvature = self.curvature or None
        if self.size <= _CONVERGED * self.first:
            return Solution(value, Status.CONVERGED, curvature, f"step size {step_size:.3g}")
        too_long = step_size * self.curvature > 2.0
        if too_long or self.growths >= 2:
            detail = f"the last term is {self.factor:.3g} times the one before"
            if too_long:
                detail += (
                    f", curvature {self.curvature:.3g} was met, a step size of "
                    f"{1.0 / self.curvature:.3g} would not grow there"
                )
            status = Status.DIVERGING if too_long else Status.NEGATIVE_CURVATURE
            return Solution(value, status, curvature, detail)
        left = self.size / self.first
        detail = f"step size {step_size:.3g}, last term {left:.2g} of the first"
        return Solution(value, Status.TRUNCATED, curvature, detail)
