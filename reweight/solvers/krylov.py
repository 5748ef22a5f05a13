"""The Lanczos process for a symmetric operator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reweight._tensors import norm

# If what is left of a product after orthogonalisation is below this share of it, in units of
# rounding, it is noise and the subspace is invariant. Each reorthogonalised direction carries about
# one unit.
_BREAKDOWN = 16.0
# If it is below this share of the product, it is orthogonalised again: "twice is enough" (Kahan;
# Parlett, The Symmetric Eigenvalue Problem, §6.9).
_CANCELLED = 0.5


@dataclass(frozen=True)
class Krylov:
    """An orthonormal basis of span{b, Ab, …} in which ``A`` is the tridiagonal ``matrix``.

    Attributes:
        length: ``‖b‖``; the first basis vector is ``b/‖b‖``.
        basis: the vectors as rows, ``[k, n]``: one more than the products made, unless
            ``invariant``.
        shape: of ``b``.
        matrix: ``[len(basis), len(basis)]`` float64. Unless ``invariant``, its last diagonal entry
            is unknown and zero: a polynomial in the matrix applied to the first unit vector is
            exact up to degree ``len(basis) - 1``, which never reads that entry.
        num_products: number of products with ``A``.
        invariant: whether ``A`` maps the span into itself, so that polynomials of every degree are
            exact.
    """

    length: float
    basis: Tensor
    shape: torch.Size
    matrix: NDArray[np.float64]
    num_products: int
    invariant: bool

    def ritz_values(self) -> NDArray[np.float64]:
        """Eigenvalues of ``A`` restricted to the basis vectors that were multiplied, ascending."""
        known = self.num_products
        values = np.linalg.eigvalsh(self.matrix[:known, :known])
        return np.asarray(values, dtype=np.float64)

    def lift(self, coefficients: NDArray[np.float64]) -> Tensor:
        """The vector with these coordinates in the basis."""
        weights = torch.from_numpy(coefficients).to(self.basis)
        lifted: Tensor = (weights @ self.basis).view(self.shape)
        return lifted


def lanczos(matvec: Callable[[Tensor], Tensor], b: Tensor, num_products: int, eps: float) -> Krylov:
    """Run at most ``num_products`` steps from ``b ≠ 0``, with full reorthogonalisation.

    Args:
        matvec: ``v -> A v``, symmetric.
        b: where to start.
        num_products: the largest number of products with ``A``.
        eps: the relative rounding error of a product.
    """
    length = norm(b)
    # One matrix, so that a product is orthogonalised in two passes over it. Rows of even length
    # are aligned.
    rows = b.new_empty(num_products + 1, b.numel() + b.numel() % 2)[:, : b.numel()]
    torch.mul(b.reshape(-1), 1.0 / length, out=rows[0])
    diagonal: list[float] = []
    beside: list[float] = []
    invariant = False
    while len(diagonal) < num_products:
        count = len(diagonal) + 1
        product = matvec(rows[count - 1].view(b.shape)).reshape(-1)
        size = norm(product)
        along = rows[:count] @ product
        diagonal.append(float(along[-1]))
        product = torch.addmv(product, rows[:count].t(), along, alpha=-1.0)
        left = norm(product)
        if left < _CANCELLED * size:
            # Cancellation: what is left carries the rounding error of what was subtracted.
            product.addmv_(rows[:count].t(), rows[:count] @ product, alpha=-1.0)
            left = norm(product)
        if left <= _BREAKDOWN * eps * size:
            invariant = True
            break
        beside.append(left)
        torch.mul(product, 1.0 / left, out=rows[count])
    basis = rows[: 1 + len(beside)]
    matrix = tridiagonal(diagonal, beside, len(basis))
    return Krylov(length, basis, b.shape, matrix, len(diagonal), invariant)


def tridiagonal(diagonal: list[float], beside: list[float], size: int) -> NDArray[np.float64]:
    """The symmetric tridiagonal matrix with these entries; missing ones are zero."""
    matrix = np.zeros((size, size))
    matrix[np.arange(len(diagonal)), np.arange(len(diagonal))] = diagonal
    off = np.arange(len(beside))
    matrix[off, off + 1] = matrix[off + 1, off] = beside
    return matrix
