"""Checks on the fields of a solver."""

from __future__ import annotations

import math
from numbers import Integral, Real


def positive(solver: str, field: str, value: object) -> None:
    """Raise unless ``value`` is a finite number above zero."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value <= 0:  # type: ignore[arg-type, operator]
        raise ValueError(f"{solver}({field}={value!r}): {field} must be a finite number above 0")


def whole(solver: str, field: str, value: object, least: int) -> None:
    """Raise unless ``value`` is an int of at least ``least``."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ValueError(
            f"{solver}({field}={value!r}): {field} must be a whole number of at least {least}"
        )
