"""Whether second derivatives are those of the loss.

A wrong double backward (``weight_norm`` on the CPU, a custom function whose backward pass detaches)
raises nothing and looks like any other. Here one product with the Hessian is compared with central
differences of first-order gradients, in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from reweight._trees import Tree, axpy, dot, norm, scale, tree_map

Evaluate = Callable[[Tree], tuple[float, Tree]]
Product = Callable[[Tree, Tree], Tree]

# Relative steps of the differences: so small that hardly a kink of a ReLU lies in between. Which
# ones agree says what to believe.
_STEPS = (1e-3, 1e-5, 1e-7)
_ROUNDED = (torch.float32, torch.float16, torch.bfloat16)
# How far from the parameters all is looked at, in shares of their size.
_BESIDE = 1e-2
# A disagreement of at least this share, and of ten times the doubt in the differences, is one.
_SHARE = 1e-3
_MARGIN = 10.0
# First derivatives of a loss in float64 are exact to many more digits.
_SHARE_OF_FIRST = 1e-6
# Of the sizes of two products, which a random pair of directions seldom fills.
_SHARE_OF_SKEW = 1e-5
# Blocks of the product below this share of all of it are not looked at one by one.
_SMALL = 1e-6


@dataclass(frozen=True)
class Disagreement:
    """Where a product and the differences of gradients are not the same.

    Attributes:
        name: the parameter at which they differ most.
        share: by how much of the differences there.
        of_the_loss: whether the gradients are the derivatives of the loss, as its values show, and
            their differences symmetric. If not, differences are no second derivatives either.
    """

    name: str
    share: float
    of_the_loss: bool


def disagreement(
    product: Product, evaluate: Evaluate, params: Tree, constant: Mapping[str, int]
) -> Disagreement | None:
    """Compare ``product`` with differences of gradients along a random direction.

    Both are called with leaves that require gradients, not at ``params`` but near by: where a head
    is still zero, the second derivatives of what lies below it are not seen.

    Args:
        product: ``(θ, v) -> H v``, float64.
        evaluate: ``θ -> (inner(θ), ∇inner(θ))``, float64.
        params: θ.
        constant: rows of some entries of θ that are no parameters, such as those of padding.

    Returns:
        The worst block, or ``None`` if they agree or the differences can't tell.

    Raises:
        TypeError: a part of the loss is computed in less than float64, so that differences say
            nothing.
    """
    size = norm(params) / max(sum(p.numel() for p in params.values()), 1) ** 0.5
    params = axpy(_BESIDE, _direction(params, constant, 2, least=size), params)
    with _Precision() as precision:
        _, here = evaluate(_leaves(params))
    if precision.rounded_to is not None:
        raise TypeError(f"a part of the loss is rounded to {precision.rounded_to}")
    v = _direction(params, constant, 0)
    found = product(_leaves(params), v)
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


def _leaves(params: Tree) -> Tree:
    return tree_map(lambda p: p.detach().requires_grad_(True), params)


def _direction(params: Tree, constant: Mapping[str, int], seed: int, least: float = 0.0) -> Tree:
    """Normal entries of each parameter's own size; zero in rows that are constant."""
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
    """Notes the last type that something in float64 was rounded to, if anything was."""

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
    """``H v`` by central differences, and how far two steps are apart, for each parameter.

    Each parameter takes the two neighbouring steps that agree best.
    """
    found = []
    for step in _STEPS:
        ahead, behind = _beside(evaluate, params, v, step)
        found.append(scale(1.0 / (2.0 * step), axpy(-1.0, behind[1], ahead[1])))
    best: dict[str, Tensor] = {}
    doubt: dict[str, float] = {}
    for name in params:
        apart = [norm(a[name] - b[name]) for a, b in zip(found, found[1:], strict=False)]
        first = min(range(len(apart)), key=apart.__getitem__)
        best[name], doubt[name] = found[first + 1][name], apart[first]
    return best, doubt


def _descends(evaluate: Evaluate, params: Tree, gradient: Tree) -> bool:
    """Whether the loss changes along its gradient as the gradient says."""
    slope = norm(gradient)
    if slope == 0.0:
        return True
    v = scale((norm(params) or 1.0) / slope, gradient)
    found = []
    for step in _STEPS:
        ahead, behind = _beside(evaluate, params, v, step)
        found.append((ahead[0] - behind[0]) / (2.0 * step))
    doubt, value = min((abs(a - b), b) for a, b in zip(found, found[1:], strict=False))
    expected = slope * norm(v)
    return abs(value - expected) <= max(_SHARE_OF_FIRST * expected, _MARGIN * doubt)


def _beside(
    evaluate: Evaluate, params: Tree, v: Tree, step: float
) -> tuple[tuple[float, Tree], tuple[float, Tree]]:
    ahead, behind = (evaluate(_leaves(axpy(sign * step, v, params))) for sign in (1.0, -1.0))
    return ahead, behind
