"""A comparison of derivatives along a direction with gradients.

The gradients are those that train the model. Where a derivative of the losses along a direction is
another one (a ``detach()``, a straight-through estimator, an operation that drops what forward mode
computes), a first-order step must not use it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from reweight._problem.second_derivatives import (
    LIMITS,
    MARGIN,
    OFFSET,
    Evaluate,
    Limits,
    random_direction,
)
from reweight._tensors import Tree, axpy, central_difference, dot, new_leaves, norm, rounding

# Forward mode rounds like a gradient, so it may differ by this many units of rounding.
_ROUNDINGS = 1e5


def limits_of(tensors: Tree) -> Limits:
    """What can be told apart in the precision of the least precise tensor.

    Raises:
        TypeError: nothing can.
    """
    dtype = max((x.dtype for x in tensors.values()), key=lambda dtype: torch.finfo(dtype).eps)
    if dtype not in LIMITS:
        raise TypeError(f"{dtype} has too few digits for a comparison")
    return LIMITS[dtype]


def terms(gradient: Tree, v: Tree) -> tuple[float, float]:
    """``⟨gradient, v⟩``, and the sum of the sizes of its terms, one for each parameter."""
    each = [dot({name: entry}, {name: v[name]}) for name, entry in gradient.items()]
    return sum(each), sum(map(abs, each))


def mismatch(
    along: Callable[[Tree, Tree], float] | None,
    evaluate: Evaluate,
    value: Callable[[Tree], float],
    params: Tree,
    constant: Mapping[str, int],
) -> float | None:
    """Compare a derivative of a loss along a random direction with its gradient.

    At a point near ``params``: where the last layer is still zero, the derivatives by the layers
    below are zero too.

    Args:
        along: ``(θ, v) -> ∂/∂t loss(θ + t·v)``; ``None`` for central differences of ``value``.
        evaluate: ``θ -> (loss(θ), ∇loss(θ))``.
        value: ``θ -> loss(θ)``.
        params: θ, in float64.
        constant: rows of some entries of θ that are constants, such as padding rows.

    Returns:
        By how much the two differ, as a share of the terms of the inner product; ``None`` if they
        agree.

    Raises:
        TypeError: the differences are too inexact to tell.
    """
    limits = limits_of(params)
    size = norm(params) / max(sum(p.numel() for p in params.values()), 1) ** 0.5
    params = axpy(OFFSET, random_direction(params, constant, 2, least=size), params)
    v = random_direction(params, constant, 0)
    expected, total = terms(evaluate(new_leaves(params))[1], v)
    if along is not None:
        return differing(along(params, v), expected, total, 0.0, _ROUNDINGS * rounding(params))
    found = [central_difference(value, params, v, step) for step in limits.steps]
    doubt, best = min((abs(a - b), b) for a, b in zip(found, found[1:], strict=False))
    if MARGIN * doubt > 0.5 * total:
        raise TypeError("differences of the losses are too inexact, by rounding or by kinks")
    return differing(best, expected, total, doubt, limits.first)


def differing(
    found: float, expected: float, total: float, doubt: float, share: float
) -> float | None:
    """By how much two derivatives differ, if by more than can be explained.

    Args:
        found: one.
        expected: the other.
        total: the size of the terms that they are sums of.
        doubt: the error of ``found``.
        share: of ``total``, the least that is told apart.
    """
    apart = abs(found - expected)
    if apart <= max(share * total, MARGIN * doubt):
        return None
    return apart / total if total else float("inf")
