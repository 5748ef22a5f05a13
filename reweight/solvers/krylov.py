"""The Lanczos process for a symmetric operator, with full orthogonalisation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from reweight._tensors import all_entries, inner_products, norm, power_of_two, read
from reweight.solvers._products import check_product

if TYPE_CHECKING:
    from numpy.typing import NDArray

# If what is left of a product after orthogonalisation is below this share of it, in units of
# rounding, it is noise and the subspace is invariant.
BREAKDOWN = 64.0


@dataclass(frozen=True)
class Krylov:
    """An orthonormal basis ``V`` of span{b, Ab, …} with ``A V = V·matrix``.

    Attributes:
        length: ``‖b‖``; the first basis vector is ``b/‖b‖``.
        basis: the vectors as rows, ``[k, n]``: one more than the products made, unless
            ``invariant``.
        shape: of ``b``.
        matrix: ``[len(basis), len(basis)]`` float64, tridiagonal to rounding. Unless
            ``invariant``, its last column is unknown and zero: a polynomial in the matrix applied
            to the first unit vector is exact up to degree ``len(basis) - 1``, which never reads
            that column.
        num_products: number of products with ``A``.
        settled: number of products after which the basis is no longer orthonormal enough for Ritz
            values. They hardly change any more from there on.
        invariant: whether ``A`` maps the span into itself, so that polynomials of every degree are
            exact.
    """

    length: float
    basis: Tensor
    shape: torch.Size
    matrix: NDArray[np.float64]
    num_products: int
    settled: int
    invariant: bool

    def ritz_values(self) -> NDArray[np.float64]:
        """Eigenvalues of ``A`` restricted to the basis vectors that were multiplied, ascending."""
        known = self.settled
        restricted = self.matrix[:known, :known]
        values = np.linalg.eigvalsh((restricted + restricted.T) / 2.0)
        return np.asarray(values, dtype=np.float64)

    def lift(self, coefficients: NDArray[np.float64]) -> Tensor:
        """The vector with these coordinates in the basis."""
        weights = torch.from_numpy(coefficients).to(self.basis)
        lifted: Tensor = (weights @ self.basis).view(self.shape)
        return lifted


def lanczos(matvec: Callable[[Tensor], Tensor], b: Tensor, num_products: int, eps: float) -> Krylov:
    """Run ``num_products`` steps from ``b ≠ 0``, each orthogonalised against all before it.

    Nothing is read from the device until the end, so products go on in a subspace that turns out to
    be invariant; they are left out. Where squares leave the range of the floating-point type, the
    process runs again with a multiple of ``A``.

    Args:
        matvec: ``v -> A v``, symmetric.
        b: where to start.
        num_products: the number of products with ``A``.
        eps: the relative rounding error of a product.

    Raises:
        FloatingPointError: a product is not finite.
    """
    shape, flat, unit = b.shape, b.reshape(-1), 1.0

    def scaled(v: Tensor) -> Tensor:
        product = matvec(v.view(shape)).reshape(-1)
        return product if unit == 1.0 else product * (1.0 / unit)

    rows, numbers = _run(scaled, flat, num_products)
    (first,), *steps = read(*numbers)
    if steps[0][0] < least_square(b.dtype) or not all(math.isfinite(size) for size, *_ in steps):
        size = norm(scaled(rows[0]))
        check_product(1, size)
        if size > 0.0:
            unit = power_of_two(b, size)
            rows, numbers = _run(scaled, flat, num_products)
            (first,), *steps = read(*numbers)
    matrix = np.zeros((num_products + 1, num_products + 1))
    settled = num_products
    for step, (squared, left, *along) in enumerate(steps):
        check_product(step + 1, squared)
        matrix[: step + 1, step] = along
        if left <= (BREAKDOWN * eps) ** 2 * squared:
            known = step + 1
            matrix = unit * matrix[:known, :known]
            settled = min(settled, known)
            return Krylov(math.sqrt(first), rows[:known], shape, matrix, known, settled, True)
        if left <= eps * squared:
            settled = min(settled, step + 1)
        matrix[step + 1, step] = math.sqrt(left)
    return Krylov(math.sqrt(first), rows, shape, unit * matrix, num_products, settled, False)


def least_square(dtype: torch.dtype) -> float:
    """The smallest squared norm of which parts at the level of rounding do not underflow."""
    limits = torch.finfo(dtype)
    return float(limits.tiny / limits.eps**2)


def _run(
    matvec: Callable[[Tensor], Tensor], b: Tensor, num_products: int
) -> tuple[Tensor, list[Tensor]]:
    """The basis as rows, and numbers on the device.

    These are ``‖b‖²``, and for each product its squared norm, that of what is left of it, and the
    coefficients that were subtracted. Taking these for the matrix, ``A V = V·matrix`` holds to
    rounding even where cancellation has made the basis less orthogonal.
    """
    # One matrix, so that a product is orthogonalised in two passes over it. Rows of even length
    # are aligned.
    rows = b.new_empty(num_products + 1, b.numel() + b.numel() % 2)[:, : b.numel()]
    tiny = torch.finfo(b.dtype).tiny
    squared = inner_products((b, b))
    torch.mul(b, squared.rsqrt(), out=rows[0])
    numbers = [squared]
    for count in range(1, num_products + 1):
        before, product = rows[:count], matvec(rows[count - 1])
        size = inner_products((product, product))
        along = all_entries(before @ product)
        product = torch.addmv(product, before.t(), along, alpha=-1.0)
        left = inner_products((product, product))
        torch.mul(product, left.clamp(min=tiny).rsqrt(), out=rows[count])
        numbers.append(torch.cat((size, left, along)))
    return rows, numbers
