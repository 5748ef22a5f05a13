"""A comparison of second derivatives with differences of gradients.

A wrong double backward (``weight_norm`` on the CPU, a custom function whose backward pass detaches)
raises no error. Here one product with the Hessian is compared with central differences of
first-order gradients, in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from reweight._tensors import Tree, axpy, central_difference, dot, new_leaves, norm, scale

Evaluate = Callable[[Tree], tuple[float, Tree]]
Product = Callable[[Tree, Tree], Tree]

# Relative steps of the differences, so small that few kinks of a ReLU lie in between. Two steps
# that agree are believed.
_STEPS = (1e-3, 1e-5, 1e-7)
_ROUNDED = (torch.float32, torch.float16, torch.bfloat16)
# Distance from the parameters at which everything is compared, relative to their size.
_OFFSET = 1e-2
# Two products disagree if they differ by this share, and by ten times the error of the differences.
_SHARE = 1e-3
_MARGIN = 10.0
# The same for first derivatives, which are exact to many more digits in float64.
_SHARE_OF_FIRST = 1e-6
# The same for the asymmetry of the differences, relative to the product of the vectors' norms.
_SHARE_OF_SKEW = 1e-5
# The smallest share of the whole product at which a parameter's block is compared by itself.
_SMALL = 1e-6


@dataclass(frozen=True)
class Disagreement:
    """Where a product and the differences of gradients are not the same.

    Attributes:
        name: the parameter at which they differ most.
        share: by how much of the differences there.
        of_the_loss: whether the gradients are the derivatives of the loss, and their differences
            symmetric. If not, differences of gradients are no second derivatives either.
    """

    name: str
    share: float
    of_the_loss: bool


def disagreement(
    product: Product, evaluate: Evaluate, params: Tree, constant: Mapping[str, int]
) -> Disagreement | None:
    """Compare ``product`` with differences of gradients along a random direction.

    Both functions are called with leaves that require gradients, at a point near ``params``: where
    the last layer is still zero, the second derivatives by the layers below are zero too.

    Args:
        product: ``(θ, v) -> H v``, float64.
        evaluate: ``θ -> (inner(θ), ∇inner(θ))``, float64.
        params: θ.
        constant: rows of some entries of θ that are constants, such as padding rows.

    Returns:
        The worst parameter, or ``None`` if they agree or the differences are too inexact to tell.

    Raises:
        TypeError: a part of the loss is computed in less than float64, so that the differences are
            too inexact.
    """
    size = norm(params) / max(sum(p.numel() for p in params.values()), 1) ** 0.5
    params = axpy(_OFFSET, _direction(params, constant, 2, least=size), params)
    with _Precision() as precision:
        _, here = evaluate(new_leaves(params))
    if precision.rounded_to is not None:
        raise TypeError(f"a part of the loss is rounded to {precision.rounded_to}")
    v = _direction(params, constant, 0)
    found = product(new_leaves(params), v)
    expected, doubt = _differences(evaluate, params, v)
    total = norm(expected)
    worst, name = 0.0, ""
    for key, entry in expected.items():
        size = max(norm(entry), _SMALL * total)
        apart = norm(found[key] - entry)
        if apart > max(_SHARE * size, _MARGIN * doubt[key]) and apart / size > worst:
            worst, name = apart / size, key
    if not name:
        return None
    w = _direction(params, constant, 1)
    other, other_doubt = _differences(evaluate, params, w)
    sizes = norm(w) * total + norm(v) * norm(other)
    noise = norm(w) * sum(doubt.values()) + norm(v) * sum(other_doubt.values())
    skew = abs(dot(w, expected) - dot(v, other))
    symmetric = skew <= max(_SHARE_OF_SKEW * sizes, _MARGIN * noise)
    return Disagreement(name, worst, symmetric and _descends(evaluate, params, here))


def _direction(params: Tree, constant: Mapping[str, int], seed: int, least: float = 0.0) -> Tree:
    """Normal random entries, scaled to the size of each parameter; zero in constant rows."""
    generator = torch.Generator().manual_seed(seed)
    direction = {}
    for name, p in params.items():
        noise = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.device)
        size = max(norm(p) / max(p.numel(), 1) ** 0.5, least)
        direction[name] = noise * (size or 1.0)
        if name in constant:
            direction[name][constant[name]] = 0.0
    return direction


class _Precision(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the type that a float64 tensor was rounded to last, if any was."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rounded_to: torch.dtype | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(isinstance(entry, Tensor) and entry.dtype == torch.float64 for entry in args):
            for entry in result if isinstance(result, (tuple, list)) else (result,):
                if isinstance(entry, Tensor) and entry.dtype in _ROUNDED:
                    self.rounded_to = entry.dtype
        return result


def _differences(evaluate: Evaluate, params: Tree, v: Tree) -> tuple[Tree, dict[str, float]]:
    """``H v`` by central differences, and their error, for each parameter.

    Each parameter takes those two neighbouring steps that agree best; the error is by how much they
    differ.
    """

    def gradient(p: Tree) -> Tree:
        return evaluate(new_leaves(p))[1]

    found = [central_difference(gradient, params, v, step) for step in _STEPS]
    best: dict[str, Tensor] = {}
    doubt: dict[str, float] = {}
    for name in params:
        apart = [norm(a[name] - b[name]) for a, b in zip(found, found[1:], strict=False)]
        first = min(range(len(apart)), key=apart.__getitem__)
        best[name], doubt[name] = found[first + 1][name], apart[first]
    return best, doubt


def _descends(evaluate: Evaluate, params: Tree, gradient: Tree) -> bool:
    """Whether the derivative of the loss along its gradient is the gradient's squared norm."""
    slope = norm(gradient)
    if slope == 0.0:
        return True
    v = scale((norm(params) or 1.0) / slope, gradient)

    def value(p: Tree) -> float:
        return evaluate(new_leaves(p))[0]

    found = [central_difference(value, params, v, step) for step in _STEPS]
    doubt, value_along = min((abs(a - b), b) for a, b in zip(found, found[1:], strict=False))
    expected = slope * norm(v)
    return abs(value_along - expected) <= max(_SHARE_OF_FIRST * expected, _MARGIN * doubt)
