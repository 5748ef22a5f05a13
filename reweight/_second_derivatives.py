"""Whether second derivatives are those of the loss.

A wrong double backward (``weight_norm`` on the CPU, a custom function whose backward pass detaches)
raises nothing and looks like any other. Here one product with the Hessian is compared with central
differences of first-order gradients, in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from reweight._trees import Tree, axpy, dot, norm, scale, tree_map

Evaluate = Callable[[Tree], tuple[float, Tree]]
Product = Callable[[Tree, Tree], Tree]

# Relative steps of the differences. Where the loss is computed in float64 all the way, the small
# ones agree to many digits and no kink of a ReLU lies in between; where a part of it is computed
# in float32, only the large one is any good. Which ones agree says what to believe.
_STEPS = (1e-3, 1e-5, 1e-7)
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


def disagreement(product: Product, evaluate: Evaluate, params: Tree) -> Disagreement | None:
    """Compare ``product`` with differences of gradients along a random direction.

    Both are called with leaves that require gradients.

    Args:
        product: ``(θ, v) -> H v``, float64.
        evaluate: ``θ -> (inner(θ), ∇inner(θ))``, float64.
        params: θ.

    Returns:
        The worst block, or ``None`` if they agree or the differences can't tell.
    """
    _, here = evaluate(_leaves(params))
    # Entries without a gradient stay where they are. That of a padding row is zero by decree,
    # whatever the loss does with it: such a row is a constant and no parameter.
    v = _direction(params, here)
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
    w = _direction(params, here, seed=1)
    other, other_doubt = _differences(evaluate, params, w)
    sizes = norm(w) * total + norm(v) * norm(other)
    noise = norm(w) * sum(doubt.values()) + norm(v) * sum(other_doubt.values())
    skew = abs(dot(w, expected) - dot(v, other))
    symmetric = skew <= max(_SHARE_OF_SKEW * sizes, _MARGIN * noise)
    return Disagreement(name, worst, symmetric and _descends(evaluate, params, here))


def _leaves(params: Tree) -> Tree:
    return tree_map(lambda p: p.detach().requires_grad_(True), params)


def _direction(params: Tree, gradient: Tree, seed: int = 0) -> Tree:
    """Normal entries of each parameter's own size, where there is a gradient."""
    generator = torch.Generator().manual_seed(seed)
    direction = {}
    for name, p in params.items():
        noise = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.device)
        size = norm(p) / max(p.numel(), 1) ** 0.5
        direction[name] = noise * (size or 1.0) * (gradient[name] != 0.0)
    return direction


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
