"""Checks on products with the matrix."""

from __future__ import annotations

import math


def check_product(number: int, value: float, what: str = "") -> None:
    """Raise unless a value that was computed from the product ``number`` is finite.

    Args:
        number: of the product, counted from 1.
        value: what was computed.
        what: the words before it, for the error.
    """
    if not math.isfinite(value):
        raise FloatingPointError(
            f"Hessian-vector product {number} is not finite ({what}{value}); the inner loss has an "
            "infinite second derivative here, or the series diverges: lower the solver's step "
            "size, or add damping"
        )
