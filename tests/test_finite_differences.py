"""Hypergradients of random problems against inner problems that are solved again."""

from __future__ import annotations

from collections.abc import Callable

import torch
from hypothesis import example, given
from torch import Tensor

from _support.strategies import Problem, Spec, make, specs
from reweight import (
    ConjugateGradient,
    ImplicitHypergradient,
    Losses,
    Neumann,
    Reweighted,
    wrap,
)

STEP = 2e-5
# A stencil of fourth order: its truncation error is of size STEP⁴ = 2e-19 times fifth derivatives,
# which can be 1e12 times the first where a curvature is small; and rounding, 1e-15 / STEP.
RTOL, ATOL = 1e-6, 1e-8


def wrapped(problem: Problem) -> Reweighted:
    spec = problem.spec
    highest = float(torch.linalg.eigvalsh(problem.hessian)[-1])
    solver = {
        "cg": ConjugateGradient(max_steps=4 * len(problem.hessian), rtol=1e-12),
        "neumann_auto": Neumann(num_terms=400),
        "neumann_fixed": Neumann(num_terms=120, step_size=1.0 / highest),
    }[spec.solver]
    return wrap(
        problem.model,
        problem.weighter,
        losses=lambda model, batch: Losses(
            model.losses(batch), model.fixed(batch), problem.inputs(batch)
        ),
        optimizer=torch.optim.SGD(problem.model.parameters(), lr=0.1, weight_decay=spec.decay),
        hypergradient=ImplicitHypergradient(solver, spec.damping, spec.hvp),
        reduction=spec.reduction,
    )


def solved_again(problem: Problem, weights: Tensor) -> float:
    """The outer loss after the inner problem is solved at other weights.

    Newton's method with the dense Hessian of the base solution: at weights that moved by 1e-4, a
    step divides the distance by hundreds as a rule, and by less where the loss is far from
    quadratic.
    """
    theta = problem.position()
    gradient = torch.func.grad(problem.inner)
    inverse = torch.linalg.inv(problem.hessian)
    for _ in range(30):
        theta = theta - inverse @ gradient(theta, weights)
        if gradient(theta, weights).norm() < 1e-13:
            break
    assert gradient(theta, weights).norm() < 1e-12
    return float(problem.outer(theta))


def derivative(problem: Problem, weights_at: Callable[[float], Tensor]) -> float:
    """Of the outer loss along a path of weights, at its middle."""
    ahead, behind, further, furthest = (
        solved_again(problem, weights_at(t * STEP)) for t in (1.0, -1.0, 2.0, -2.0)
    )
    return (8.0 * (ahead - behind) - (further - furthest)) / (12.0 * STEP)


@given(specs)
# Far from quadratic: a step of 5e-5 is too long here, and six Newton steps are too few.
@example(Spec("two_part", "group", "cg", "auto", "sum", 5, 0.0, 0.0, 1))
def test_the_hypergradient_is_the_derivative_of_the_solution(spec: Spec) -> None:
    problem = make(spec)
    result = wrapped(problem).hypergradient(problem.train, problem.dev)
    assert result.info.trustworthy, result.info.message

    weights = problem.weigh()
    by_weight = torch.tensor(
        [
            derivative(problem, lambda t, unit=unit: weights + t * unit)
            for unit in torch.eye(len(weights), dtype=torch.float64)
        ],
        dtype=torch.float64,
    )
    torch.testing.assert_close(
        result.influence, by_weight, rtol=0.0, atol=RTOL * float(by_weight.abs().max()) + ATOL
    )

    generator = torch.Generator().manual_seed(spec.seed)
    parameters = dict(problem.weighter.named_parameters())
    direction = {
        name: torch.randn(p.shape, generator=generator, dtype=torch.float64)
        for name, p in parameters.items()
    }
    length = torch.stack([d.norm() for d in direction.values()]).norm()
    expected = derivative(
        problem, lambda t: weights_at(problem, {n: t / length * d for n, d in direction.items()})
    )
    found = sum(float((result.grads[n] * d).sum()) for n, d in direction.items()) / float(length)
    size = sum(float(g.square().sum()) for g in result.grads.values()) ** 0.5
    assert abs(found - expected) <= RTOL * size + ATOL


def weights_at(problem: Problem, step: dict[str, Tensor]) -> Tensor:
    """The weights of the frozen losses and inputs, the weighter moved by ``step``."""
    moved = {n: p.detach() + step[n] for n, p in problem.weighter.named_parameters()}
    arguments = problem.frozen_losses(), problem.inputs(problem.train)
    with torch.no_grad():
        weights: Tensor = torch.func.functional_call(problem.weighter, moved, arguments)
    return weights
