"""Central finite differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from reweight._tensors.vectors import Vector, axpy

Value = TypeVar("Value")


def central_difference(
    function: Callable[[Vector], Value], x: Vector, v: Vector, step: float
) -> Value:
    """``(f(x + h·v) − f(x − h·v)) / 2h``, the derivative of ``f`` along ``v`` up to ``O(h²)``.

    Args:
        function: ``f``. Its value is a number, a tensor, or a tuple or dict of these; ``None`` in
            one of them stays ``None``.
        x: where.
        v: the direction, with the structure of ``x``.
        step: ``h``, above 0.
    """
    ahead = function(axpy(step, v, x))
    behind = function(axpy(-step, v, x))
    found: Value = _scaled_difference(ahead, behind, 1.0 / (2.0 * step))
    return found


def _scaled_difference(ahead: Any, behind: Any, factor: float) -> Any:
    if ahead is None or behind is None:
        return None
    if isinstance(ahead, tuple):
        return tuple(_scaled_difference(a, b, factor) for a, b in zip(ahead, behind, strict=True))
    if isinstance(ahead, dict):
        return {k: _scaled_difference(a, behind[k], factor) for k, a in ahead.items()}
    return (ahead - behind) * factor
