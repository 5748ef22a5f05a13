"""The Lanczos process: what a few products with a symmetric operator reveal of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reweight._trees import dot, norm

# Below this share of the operator's size, in units of rounding, the next direction is noise: the
# subspace is invariant. Each reorthogonalised direction carries about one unit.
_BREAKDOWN = 16.0


@dataclass(frozen=True)
class Krylov:
    """An orthonormal basis of span{b, Ab, …} in which ``A`` is the tridiagonal ``matrix``.

    Attributes:
        length: ``‖b‖``; the first basis vector is ``b/‖b‖``.
        basis: the vectors. One more than the products made, unless ``invariant``.
        matrix: ``[len(basis), len(basis)]`` float64. Unless ``invariant``, its last diagonal entry
            is unknown and zero: a polynomial in the matrix applied to the first unit vector is
            exact up to degree ``len(basis) - 1``, which never reads that entry.
        num_products: products with ``A`` that were made.
        invariant: ``A`` maps the span into itself, so polynomials of every degree are exact.
    """

    length: float
    basis: list[Tensor]
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
        total = torch.zeros_like(self.basis[0])
        for coefficient, direction in zip(coefficients, self.basis, strict=True):
            total.add_(direction, alpha=float(coefficient))
        return total


def lanczos(matvec: Callable[[Tensor], Tensor], b: Tensor, num_products: int, eps: float) -> Krylov:
    """Run at most ``num_products`` steps from ``b ≠ 0``, with full reorthogonalisation."""
    length = norm(b)
    basis = [b * (1.0 / length)]
    diagonal: list[float] = []
    beside: list[float] = []
    invariant = False
    while len(diagonal) < num_products:
        product = matvec(basis[-1])
        size = norm(product)
        diagonal.append(dot(product, basis[-1]))
        # The first out of place: what the operator gave back may be what it got.
        product = torch.add(product, basis[0], alpha=-dot(product, basis[0]))
        for direction in basis[1:]:
            product.add_(direction, alpha=-dot(product, direction))
        left = norm(product)
        if left <= _BREAKDOWN * eps * size:
            invariant = True
            break
        beside.append(left)
        basis.append(product * (1.0 / left))
    matrix = tridiagonal(diagonal, beside, len(basis))
    return Krylov(length, basis, matrix, len(diagonal), invariant)


def tridiagonal(diagonal: list[float], beside: list[float], size: int) -> NDArray[np.float64]:
    """The symmetric matrix with these entries; what is missing is zero."""
    matrix = np.zeros((size, size))
    matrix[np.arange(len(diagonal)), np.arange(len(diagonal))] = diagonal
    off = np.arange(len(beside))
    matrix[off, off + 1] = matrix[off + 1, off] = beside
    return matrix
