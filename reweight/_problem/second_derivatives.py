"""A comparison of second derivatives with differences of gradients.

A wrong double backward (``weight_norm`` on the CPU, a custom function whose backward pass detaches)
raises no error. Here one product with the Hessian is compared with central differences of
first-order gradients, in float64 where that can be had.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from reweight._tensors import Tree, axpy, central_difference, dot, new_leaves, norm, scale

Evaluate = Callable[[Tree], tuple[float, Tree]]
Product = Callable[[Tree, Tree], Tree]

# Distance from the parameters at which everything is compared, relative to their size.
OFFSET = 1e-2
# Whatever differs, has to differ by this many times the error of the differences.
MARGIN = 10.0


@dataclass(frozen=True)
class Limits:
    """What can be told apart in one precision.

    Attributes:
        steps: of the differences, relative to the parameters. Two steps that agree are believed.
        share: two products disagree if they differ by this share.
        first: the same for first derivatives.
        skew: the same for the asymmetry of the differences, relative to the product of the vectors'
            norms.
        small: a parameter whose block is a smaller share of the whole product counts as that large.
        flat: a product of less than this share of the gradient counts as zero.
    """

    steps: tuple[float, ...]
    share: float
    first: float
    skew: float
    small: float
    flat: float


LIMITS = {
    # Steps so small that few kinks of a ReLU lie in between; gradients have 15 digits.
    torch.float64: Limits((1e-3, 1e-5, 1e-7), 1e-3, 1e-6, 1e-5, 1e-6, 1e-6),
    # Gradients have six digits, so differences have three. That shows a missing term or factor.
    torch.float32: Limits((3e-2, 1e-2, 3e-3), 3e-2, 1e-2, 1e-2, 3e-2, 2e-2),
}


@dataclass(frozen=True)
class Disagreement:
    """Where a product and the differences of gradients are not the same.

    Attributes:
        name: the parameter at which they differ most; ``""`` where no product was compared.
        share: by how much of the differences there.
        of_the_loss: whether the gradients are the derivatives of the loss, and their differences
            symmetric. If not, differences of gradients are no second derivatives either.
    """

    name: str
    share: float
    of_the_loss: bool


def disagreement(
    product: Product | None, evaluate: Evaluate, params: Tree, constant: Mapping[str, int]
) -> Disagreement | None:
    """Compare ``product`` with differences of gradients along a random direction.

    Both functions are called with leaves that require gradients, at a point near ``params``: where
    the last layer is still zero, the second derivatives by the layers below are zero too.

    Args:
        product: ``(θ, v) -> H v``; ``None`` to look at the gradients only.
        evaluate: ``θ -> (inner(θ), ∇inner(θ))``.
        params: θ, in the precision of both.
        constant: rows of some entries of θ that are constants, such as padding rows.

    Returns:
        The worst parameter, or ``None`` if they agree.

    Raises:
        TypeError: the differences are too inexact to tell.
    """
    limits = LIMITS.get(max((p.dtype for p in params.values()), key=_eps))
    if limits is None:
        raise TypeError("the parameters have too few digits for differences of gradients")
    size = norm(params) / max(sum(p.numel() for p in params.values()), 1) ** 0.5
    params = axpy(OFFSET, random_direction(params, constant, 2, least=size), params)
    _, here = evaluate(new_leaves(params))
    v = random_direction(params, constant, 0)
    expected, doubt = _differences(evaluate, params, v, limits.steps)
    total = max(norm(expected), limits.flat * norm(here))
    noise = sum(doubt.values())
    if MARGIN * noise > 0.5 * total:
        raise TypeError(
            "differences of gradients are too inexact: they differ by "
            f"{noise / total:.1g} of their size from step to step, by rounding or by kinks"
        )
    worst, name = 0.0, ""
    if product is not None:
        found = product(new_leaves(params), v)
        for key, entry in expected.items():
            size = max(norm(entry), limits.small * total)
            apart = norm(found[key] - entry)
            if apart > max(limits.share * size, MARGIN * doubt[key]) and apart / size > worst:
                worst, name = apart / size, key
        if not name:
            return None
    w = random_direction(params, constant, 1)
    other, other_doubt = _differences(evaluate, params, w, limits.steps)
    sizes = norm(w) * total + norm(v) * norm(other)
    noise = norm(w) * noise + norm(v) * sum(other_doubt.values())
    skew = abs(dot(w, expected) - dot(v, other))
    symmetric = skew <= max(limits.skew * sizes, MARGIN * noise)
    of_the_loss = symmetric and _descends(evaluate, params, here, limits)
    return None if of_the_loss and product is None else Disagreement(name, worst, of_the_loss)


def _eps(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps


def random_direction(
    params: Tree, constant: Mapping[str, int], seed: int, least: float = 0.0
) -> Tree:
    """Normal random entries, scaled to the size of each parameter; zero in constant rows."""
    generator = torch.Generator().manual_seed(seed)
    direction = {}
    for name, p in params.items():
        noise = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.device)
        size = max(norm(p) / max(p.numel(), 1) ** 0.5, least)
        direction[name] = (noise * (size or 1.0)).to(p.dtype)
        if name in constant:
            direction[name][constant[name]] = 0.0
    return direction


def _differences(
    evaluate: Evaluate, params: Tree, v: Tree, steps: tuple[float, ...]
) -> tuple[Tree, dict[str, float]]:
    """``H v`` by central differences, and their error, for each parameter.

    Each parameter takes those two neighbouring steps that agree best; the error is by how much they
    differ.
    """

    def gradient(p: Tree) -> Tree:
        return evaluate(new_leaves(p))[1]

    before = central_difference(gradient, params, v, steps[0])
    best: Tree = {}
    doubt: dict[str, float] = {}
    # Two differences at a time are in memory, and the best blocks of those before.
    for step in steps[1:]:
        found = central_difference(gradient, params, v, step)
        for name, entry in found.items():
            apart = norm(before[name] - entry)
            if name not in doubt or apart < doubt[name]:
                best[name], doubt[name] = entry, apart
        before = found
    return best, doubt


def _descends(evaluate: Evaluate, params: Tree, gradient: Tree, limits: Limits) -> bool:
    """Whether the derivative of the loss along its gradient is the gradient's squared norm."""
    slope = norm(gradient)
    if slope == 0.0:
        return True
    v = scale((norm(params) or 1.0) / slope, gradient)

    def value(p: Tree) -> float:
        return evaluate(new_leaves(p))[0]

    found = [central_difference(value, params, v, step) for step in limits.steps]
    doubt, value_along = min((abs(a - b), b) for a, b in zip(found, found[1:], strict=False))
    expected = slope * norm(v)
    return abs(value_along - expected) <= max(limits.first * expected, MARGIN * doubt)
