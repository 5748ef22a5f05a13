"""A test of each factor of the chain rule: is the gradient the derivative of its value?

A hypergradient consists of the gradients of the outer loss, of the losses and of the weights, and
of the losses' second derivatives. If it is wrong although the linear system was solved, one of them
is wrong, and each can be compared with finite differences. (The problem audits second derivatives
itself.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reweight._tensors import Tree, axpy, central_difference, dot, norm
from reweight.checking.problem import Problem, copied, move, random, unit_direction

_STEPS = (1e-5, 1e-7)
# Differences with two steps that agree to this share are believed.
_SAME = 0.01
# In float64, derivatives and gradients of smooth functions agree to about 1e-9.
_AGREES = 1e-4
# Relative to the value, whose rounding error is divided by the step.
_NOISE = 1e-9
# Values at equal distances of this share of θ. Their second difference is 1e-14 of the values where
# these are smooth and exact, and 1e-8 where a part of the computation is in float32.
_CLOSE, _ROUGH = 1e-7, 1e-11


@dataclass(frozen=True)
class _Link:
    what: str
    value: Callable[[], Tensor]
    params: Tree


def broken_link(problem: Problem) -> str | None:
    """Name a gradient that is not the derivative of its value, or a value that is not a function.

    The problem stays where it is.
    """
    generator = torch.Generator().manual_seed(0)
    here = copied(problem.theta)
    # A minimum may lie at a kink, where there is no derivative to compare with.
    problem.move_to(problem.nearby())
    try:
        count = problem.losses().weighted.numel()
        found = (_broken(problem, x, count, generator) for x in _links(problem, generator))
        return next((fault for fault in found if fault), None)
    finally:
        problem.move_to(here)


def rounding(problem: Problem) -> str | None:
    """In words, why the values are not those of float64, if they are not."""
    if problem.rounded_to is not None:
        name = str(problem.rounded_to).removeprefix("torch.")
        return (
            f"a part of the evaluation writes into a {name} tensor and so rounds to it: make such "
            "tensors in the type of what is written into them, as torch.empty_like(x) does"
        )
    generator = torch.Generator().manual_seed(1)
    here = copied(problem.theta)
    problem.move_to(problem.nearby())
    try:
        rough = (link.what for link in _links(problem, generator) if _rough(link, generator))
        what = next(rough, None)
    finally:
        problem.move_to(here)
    return what and (
        f"{what} {_verb(what, 'is', 'are')} rounded by more than float64 explains: a part is "
        "computed in a smaller type, by numpy or by an extension"
    )


def _verb(what: str, one: str, many: str) -> str:
    return one if what.endswith("loss") else many


def _rough(link: _Link, generator: torch.Generator) -> bool:
    if not torch.equal(link.value(), link.value()):
        return False  # noise of another kind
    here, direction = copied(link.params), unit_direction(link.params, generator)

    def bend(distance: float) -> float:
        values = []
        for count in range(5):
            move(link.params, axpy(count * distance * (1.0 + norm(here)), direction, here))
            values.append(float(link.value().detach()))
        move(link.params, here)
        triples = zip(values, values[1:], values[2:], strict=False)
        return max(abs(a - 2.0 * b + c) for a, b, c in triples) / max(map(abs, values))

    # A steep curve is straight from nearby, and rounding is as rough as before.
    return all(bend(distance) > _ROUGH for distance in (_CLOSE, 0.01 * _CLOSE))


def common_factor(values: Sequence[float], others: Sequence[float], rtol: float) -> float | None:
    """``c`` with ``values ≈ c·others``, if at least two pairs of numbers show it."""
    largest = max(abs(x) for x in others)
    if sum(abs(x) > 0.01 * largest for x in others) < 2:
        return None
    factor = sum(v * x for v, x in zip(values, others, strict=True)) / sum(x * x for x in others)
    left = max(abs(v - factor * x) for v, x in zip(values, others, strict=True))
    return factor if left <= rtol * abs(factor) * largest else None


def reason(factor: float, count: int) -> str:
    """The usual cause of a factor on a gradient, as a clause, or ``""``.

    Args:
        factor: gradient over derivative.
        count: the number of samples.
    """
    count = max(count, 1)
    for target, clause in (
        (-1.0, "as behind a gradient reversal"),
        (2.0, "as where a loss is counted twice"),
        (0.5, "as where half a loss is counted"),
        (float(count), f"as where a mean over the {count} samples is taken for a sum"),
        (1.0 / count, f"as where a mean over the {count} samples is taken twice"),
    ):
        if abs(factor / target - 1.0) <= 0.01:
            return f", {clause}"
    return ""


def _links(problem: Problem, generator: torch.Generator) -> list[_Link]:
    held = problem.losses()
    # Random signs: in a plain sum over samples, opposite errors would cancel.
    signs = random(held.weighted, generator).sign()

    def signed(x: Tensor) -> Tensor:
        return (signs.to(x.dtype) * x).sum()

    name = type(problem.bilevel.weighter).__name__
    links = [
        _Link("the outer loss", problem.outer_loss, problem.theta),
        _Link(
            "the losses that get weights",
            lambda: signed(problem.evaluated().weighted),
            problem.theta,
        ),
        _Link(f"the weights of {name}", lambda: signed(problem.weighed(held)), problem.phi),
    ]
    if isinstance(held.fixed, Tensor):
        fixed = _Link(
            "the fixed losses",
            lambda: torch.as_tensor(problem.evaluated().fixed).reshape(()),
            problem.theta,
        )
        links.append(fixed)
    return links


def _broken(problem: Problem, link: _Link, count: int, generator: torch.Generator) -> str | None:
    value = link.value()
    if not torch.equal(value, link.value()):
        return (
            f"{link.what} {_verb(link.what, 'differs', 'differ')} from call to call: noise from "
            "another source than the generators of torch, numpy and Python, or a state that "
            "changes with every call. A hypergradient needs a function of parameters and batch"
        )
    grad = problem.gradient(value, link.params)
    pairs = [_both(problem, link, grad, generator) for _ in range(2)]
    noise = _NOISE * abs(float(value.detach()))
    if all(abs(g - s) <= max(noise, _AGREES * max(abs(g), abs(s))) for g, s in pairs):
        return None
    factor = common_factor([g for g, _ in pairs], [s for _, s in pairs], _AGREES)
    if factor is None or abs(factor - 1.0) < 0.01:
        return (
            f"the gradient of {link.what} is not the slope of the value: look for a detach() or "
            "no_grad() in it, for custom gradients, or for a power iteration that has no gradient, "
            "as that of spectral_norm in train mode"
        )
    return (
        f"the gradient of {link.what} is {factor:.3g} times the slope of the value"
        f"{reason(factor, count)}: look for custom gradients that are not the gradients of the loss"
    )


def _both(
    problem: Problem, link: _Link, grad: Tree, generator: torch.Generator
) -> tuple[float, float]:
    """The derivative along one direction, by the gradient and by differences.

    Where differences with two steps disagree, the gradient itself stands for the second.
    """
    direction = unit_direction(link.params, generator)
    if link.params is problem.theta:
        direction = problem.free(direction)
    if size := norm(grad):  # a random direction alone is nearly orthogonal to the gradient
        direction = axpy(1.0 / size, grad, direction)

    def value_at(params: Tree) -> float:
        move(link.params, params)
        return float(link.value().detach())

    here, along = copied(link.params), dot(grad, direction)
    far, near = (central_difference(value_at, here, direction, step) for step in _STEPS)
    move(link.params, here)
    if abs(far - near) > _SAME * max(abs(far), abs(near)):
        # The value bends too much for one of the steps, so that the other shows nothing.
        return along, along
    return along, near if abs(near - along) < abs(far - along) else far
