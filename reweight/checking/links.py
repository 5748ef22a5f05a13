"""The links of the chain rule one by one: is each gradient the slope of its value?

A hypergradient is made of the gradients of the outer loss, of the losses and of the weights, and of
the losses' second derivatives. Where it is wrong although the linear system was solved, one of them
is wrong, and each can be held against finite differences by itself. (Second derivatives are, by the
wrapped object itself.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from reweight._tensors import Tree, axpy, dot, norm, scale
from reweight.checking.problem import Problem, copied, gradient, move, random

T = TypeVar("T")

_STEP = 1e-5
# In float64, slopes and gradients of smooth functions agree to about 1e-9. The second number is
# beside the value, whose rounding error the step divides.
_AGREES = 1e-4
_NOISE = 1e-9


@dataclass(frozen=True)
class _Link:
    what: str
    value: Callable[[], Tensor]
    params: Tree


def broken_link(problem: Problem) -> str | None:
    """Say which gradient is not the slope of its value, or which value is not a function.

    Args:
        problem: at any place, where it is again afterwards.
    """
    generator = torch.Generator().manual_seed(0)
    here = problem.position()
    # Where something with kinks is smallest there is no slope to compare with, and beside it there
    # nearly always is.
    problem.move_to(problem.beside())
    try:
        count = problem.losses().weighted.numel()
        for link in _links(problem, generator):
            if found := _broken(link, count, generator):
                return found
        return None
    finally:
        problem.move_to(here)


def common_factor(values: Sequence[float], others: Sequence[float], rtol: float) -> float | None:
    """``c`` with ``values ≈ c·others``, where more than one pair of numbers says so."""
    largest = max(abs(x) for x in others)
    if sum(abs(x) > 0.01 * largest for x in others) < 2:
        return None
    factor = sum(v * x for v, x in zip(values, others, strict=True)) / sum(x * x for x in others)
    left = max(abs(v - factor * x) for v, x in zip(values, others, strict=True))
    return factor if left <= rtol * abs(factor) * largest else None


def reason(factor: float, count: int) -> str:
    """What a factor on a gradient usually comes from, as a clause, or nothing.

    Args:
        factor: gradient over slope.
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
    bilevel = problem.bilevel
    held = problem.losses()
    # Random signs: a plain sum over samples would hide what they have in opposite directions.
    signs = random(held.weighted, generator).sign()

    def outer() -> Tensor:
        problem.restore()
        return bilevel.outer_loss(problem.dev_batch)

    def weighted() -> Tensor:
        losses = problem.evaluated().weighted
        return (signs.to(losses.dtype) * losses).sum()

    def fixed() -> Tensor:
        return torch.as_tensor(problem.evaluated().fixed).reshape(())

    def weights() -> Tensor:
        gamma = problem.weighed(held)
        return (signs.to(gamma.dtype) * gamma).sum()

    links = [
        _Link("the outer loss", outer, problem.theta),
        _Link("the losses that get weights", weighted, problem.theta),
        _Link(f"the weights of {type(bilevel.weighter).__name__}", weights, problem.phi),
    ]
    if isinstance(held.fixed, Tensor):
        links.append(_Link("the fixed losses", fixed, problem.theta))
    return links


def _broken(link: _Link, count: int, generator: torch.Generator) -> str | None:
    value = link.value()
    if value.dtype != torch.float64:
        return (
            f"{link.what} are computed in {str(value.dtype).removeprefix('torch.')} on the float64 "
            "copy, which is too rough to compare: take .float() and the like out of them"
        )
    if not torch.equal(value, link.value()):
        return (
            f"{link.what} are others on every call: noise from another source than the generators "
            "of torch, numpy and Python, or a state that changes with every call. A hypergradient "
            "needs a function of parameters and batch"
        )
    grad = gradient(value, link.params)
    pairs = [_both(link, grad, generator) for _ in range(2)]
    noise = _NOISE * abs(float(value.detach()))
    if all(abs(g - s) <= max(noise, _AGREES * max(abs(g), abs(s))) for g, s in pairs):
        return None
    factor = common_factor([g for g, _ in pairs], [s for _, s in pairs], _AGREES)
    if factor is None:
        return (
            f"the gradient of {link.what} is not the slope of the value: look for a detach() or "
            "no_grad() in it, or for custom gradients"
        )
    return (
        f"the gradient of {link.what} is {factor:.3g} times the slope of the value"
        f"{reason(factor, count)}: look for custom gradients that are not the gradients of the loss"
    )


def _both(link: _Link, grad: Tree, generator: torch.Generator) -> tuple[float, float]:
    """Derivatives along one direction, by the gradient and by differences."""
    direction = _unit(link.params, generator)
    if size := norm(grad):  # neither orthogonal to the gradient nor blind to what it lacks
        direction = axpy(1.0 / size, grad, direction)
    sides = _at_both_sides(link.params, direction, lambda: float(link.value().detach()))
    return dot(grad, direction), (sides[0] - sides[1]) / (2.0 * _STEP)


def _at_both_sides(params: Tree, direction: Tree, value: Callable[[], T]) -> tuple[T, T]:
    here = copied(params)
    move(params, axpy(_STEP, direction, here))
    ahead = value()
    move(params, axpy(-_STEP, direction, here))
    behind = value()
    move(params, here)
    return ahead, behind


def _unit(params: Tree, generator: torch.Generator) -> Tree:
    direction = {name: random(p, generator) for name, p in params.items()}
    return scale(1.0 / norm(direction), direction)
