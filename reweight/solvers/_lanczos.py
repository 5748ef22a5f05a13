"""The Lanczos process: what a few products with a symmetric operator reveal of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reweight._trees import norm

# Below this share of the operator's size, in units of rounding, the next direction is noise: the
# subspace is invariant. Each reorthogonalised direction carries about one unit.
_BREAKDOWN = 16.0
# Below this share of a product, what is left of it after orthogonalisation is orthogonalised again:
# "twice is enough" (Kahan; Parlett, The Symmetric Eigenvalue Problem, §6.9).
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
        num_products: products with ``A`` that were made.
        invariant: ``A`` maps the span into itself, so polynomials of every degree are exact.
    """

    length: float
    basis: Tensor
    shape: torch.Size
    matrix: NDArray[np.float64]
    num_products: int
    invariant: bool

    def ritz_values(self) -> NDArray[np.float64]:
        """Eigenvalues of ``A`` restricted to the part of the basis that was multiplied."""
        known = self.num_products
        values = np.linalg.eigvalsh(self.matrix[:known, :known])
        return np.asarray(values, dtype=np.float64)

    def lift(self, coefficients: NDArray[np.float64]) -> Tensor:
        """The vector that has these coordinates in the basis."""
        weights = torch.from_numpy(coefficients).to(self.basis)
        lifted: Tensor = (weights @ self.basis).view(self.shape)
        return lifted


def lanczos(matvec: Callable[[Tensor], Tensor], b: Tensor, num_products: int, eps: float) -> Krylov:
    """Run at most ``num_products`` steps from ``b ≠ 0``, with full reorthogonalisation."""
    length = norm(b)
    # One matrix, so that all directions are taken out of a product in two passes over it; in rows
    # of even length, for each to be as good a place in memory as any.
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
            # What is left is small beside what was taken out, and so beside its rounding: again.
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
    """The symmetric matrix with these entries; what is missing is zero."""
    matrix = np.zeros((size, size))
    matrix[np.arange(len(diagonal)), np.arange(len(diagonal))] = diagonal
    off = np.arange(len(beside))
    matrix[off, off + 1] = matrix[off + 1, off] = beside
    return matrix
