"""The Lanczos process: what a few products with a symmetric operator reveal of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from reweight._trees import axpy, combine, dot, leaves, norm, scale
from reweight.solvers.base import Matvec

# Below this share of the operator's size, in units of the type's rounding, the next direction is
# noise: the subspace is invariant. Each reorthogonalised direction carries about one unit.
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
    basis: list[Any]
    matrix: NDArray[np.float64]
    num_products: int
    invariant: bool

    def ritz_values(self) -> NDArray[np.float64]:
        """Eigenvalues of ``A`` restricted to the part of the basis that was multiplied."""
        known = self.num_products
        values = np.linalg.eigvalsh(self.matrix[:known, :known])
        return np.asarray(values, dtype=np.float64)

    def lift(self, coefficients: NDArray[np.float64]) -> Any:
        """The vector that has these coordinates in the basis."""
        return combine([float(c) for c in coefficients], self.basis)


def lanczos(matvec: Matvec, b: Any, num_products: int) -> Krylov:
    """Run at most ``num_products`` steps from ``b ≠ 0``, with full reorthogonalisation."""
    length = norm(b)
    basis = [scale(1.0 / length, b)]
    diagonal: list[float] = []
    beside: list[float] = []
    invariant = False
    breakdown = _BREAKDOWN * max(torch.finfo(leaf.dtype).eps for leaf in leaves(b))
    while len(diagonal) < num_products:
        product = matvec(basis[-1])
        size = norm(product)
        diagonal.append(dot(product, basis[-1]))
        for direction in basis:
            product = axpy(-dot(product, direction), direction, product)
        left = norm(product)
        if left <= breakdown * size:
            invariant = True
            break
        beside.append(left)
        basis.append(scale(1.0 / left, product))
    matrix = np.zeros((len(basis), len(basis)))
    matrix[np.arange(len(diagonal)), np.arange(len(diagonal))] = diagonal
    off = np.arange(len(beside))
    matrix[off, off + 1] = matrix[off + 1, off] = beside
    return Krylov(length, basis, matrix, len(diagonal), invariant)
