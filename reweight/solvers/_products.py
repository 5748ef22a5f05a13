"""Checks on products with the matrix."""

from __future__ import annotations

import math


def check_product(number: int, size: float) -> None:
    """Raise unless a number that was computed from the product ``number`` is finite."""
    if not math.isfinite(size):
        raise FloatingPointError(
            f"Hessian-vector product {number} is not finite ({size}); the inner loss has an "
            "infinite second derivative here, or the series diverges: lower the solver's step "
            "size, or add damping"
        )
