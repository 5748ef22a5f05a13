"""What holds for every hypergradient, whatever the problem: properties of the formula itself."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from _support.strategies import Batch, Problem, Spec, anywhere, specs
from reweight import (
    ConjugateGradient,
    Hypergradient,
    Identity,
    ImplicitHypergradient,
    Losses,
    Neumann,
    TableWeighter,
    wrap,
)

# What these problems warn of, negative curvature for one, is not what is looked at here.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]

# Solvers that are linear in the right-hand side: a fixed polynomial of the Hessian, or its inverse.
SOLVERS = {
    "identity": (Identity(0.3), 0.0),
    "neumann": (Neumann(3, step_size=0.05), 0.0),
    # Enough damping for every problem here to be positive definite, and well conditioned.
    "cg": (ConjugateGradient(100, rtol=1e-14), 500.0),
}
solvers = st.sampled_from(sorted(SOLVERS))
factors = st.floats(0.1, 10.0)
# Sums of some ten terms in another order; the condition number is below 10.
RTOL = 1e-10


def strategy(solver: str, spec: Spec) -> ImplicitHypergradient:
    value, damping = SOLVERS[solver]
    return ImplicitHypergradient(value, damping, spec.hvp)


def run(
    problem: Problem,
    solver: str,
    *,
    outer: Callable[[Any, Batch], Tensor] | None = None,
    batch: Batch | None = None,
    **changes: Any,
) -> Hypergradient:
    arguments: dict[str, Any] = {
        "losses": lambda model, b: Losses(model.losses(b), model.fixed(b), problem.inputs(b)),
        "outer_loss": outer or (lambda model, b: model.outer_loss(b)),
        "optimizer": torch.optim.SGD(
            problem.model.parameters(), lr=0.1, weight_decay=problem.spec.decay
        ),
        "hypergradient": strategy(solver, problem.spec),
        "reduction": problem.spec.reduction,
        **changes,
    }
    rw = wrap(problem.model, problem.weighter, **arguments)
    return rw.hypergradient(problem.train if batch is None else batch, problem.dev)


def joined(result: Hypergradient) -> Tensor:
    return torch.cat([result.influence, *(g.reshape(-1) for g in result.grads.values())])


def assert_close(found: Tensor, expected: Tensor, *parts: Tensor) -> None:
    """Equal to rounding, beside the largest of what they are made of."""
    size = max(float(t.abs().max()) for t in (expected, *parts))
    torch.testing.assert_close(found, expected, rtol=0.0, atol=RTOL * size + 1e-300)


@given(spec=specs, solver=solvers, a=st.floats(-3.0, 3.0), b=st.floats(-3.0, 3.0))
def test_linear_in_the_dev_gradient(spec: Spec, solver: str, a: float, b: float) -> None:
    problem = anywhere(spec)

    def one(model: Any, batch: Batch) -> Tensor:
        return model.outer_loss(batch)  # type: ignore[no-any-return]

    def other(model: Any, batch: Batch) -> Tensor:
        return sum(p.sin().sum() for p in model.parameters())  # type: ignore[return-value]

    first, second = (joined(run(problem, solver, outer=f)) for f in (one, other))
    both = joined(run(problem, solver, outer=lambda m, x: a * one(m, x) + b * other(m, x)))
    assert_close(both, a * first + b * second, a * first, b * second)


@given(spec=specs, solver=solvers)
def test_the_order_of_the_batch_does_not_matter(spec: Spec, solver: str) -> None:
    problem = anywhere(spec)
    order = torch.randperm(spec.batch_size, generator=torch.Generator().manual_seed(spec.seed))
    plain = run(problem, solver, **by_sample(problem))
    shuffled = run(problem, solver, batch=reordered(problem.train, order), **by_sample(problem))
    assert_close(shuffled.influence, plain.influence[order])
    for name, grad in plain.grads.items():
        assert_close(shuffled.grads[name], grad, joined(plain))


def by_sample(problem: Problem) -> dict[str, Any]:
    """Losses whose inputs name the samples themselves, for weighters with a weight per sample."""
    if not isinstance(problem.weighter, TableWeighter):
        return {}
    return {
        "losses": lambda model, b: Losses(
            model.losses(b), model.fixed(b), getattr(b, "order", torch.arange(b.size))
        )
    }


def reordered(batch: Batch, order: Tensor) -> Batch:
    result = copy.copy(batch)
    for name in ("x", "y", "users", "items", "groups"):
        setattr(result, name, getattr(batch, name)[order])
    result.histories = type(batch.histories)(*(t[order] for t in batch.histories))
    result.order = order  # type: ignore[attr-defined]
    return result


@given(spec=specs, c=factors, d=factors)
def test_equivariant_to_the_scale_of_either_loss(spec: Spec, c: float, d: float) -> None:
    """A factor of the whole inner loss changes no minimiser; one of the outer loss is a factor."""
    problem = anywhere(spec)
    value, damping = SOLVERS["cg"]

    def scaled(model: Any, b: Batch) -> Losses:
        return Losses(c * model.losses(b), c * model.fixed(b), fixed_inputs(b))

    # Weighters look at losses: hold theirs, so that only the inner problem is scaled.
    def plain(model: Any, b: Batch) -> Losses:
        return Losses(model.losses(b), model.fixed(b), fixed_inputs(b))

    def fixed_inputs(b: Batch) -> Tensor:
        return torch.arange(b.size)

    problem.weighter = TableWeighter(5).double()
    first = run(
        problem,
        "cg",
        losses=plain,
        optimizer=None,
        hypergradient=ImplicitHypergradient(value, damping, spec.hvp),
    )
    second = run(
        problem,
        "cg",
        losses=scaled,
        outer=lambda m, b: d * m.outer_loss(b),
        optimizer=None,
        hypergradient=ImplicitHypergradient(value, c * damping, spec.hvp),
    )
    assert_close(joined(second), d * joined(first))


@given(spec=specs, solver=solvers, c=factors)
def test_weights_times_c_and_losses_over_c_are_the_same_problem(
    spec: Spec, solver: str, c: float
) -> None:
    problem = anywhere(spec)
    weights = some_weights(spec)

    def results(factor: float) -> Tensor:
        def inner(params: dict[str, Tensor], hparams: dict[str, Tensor]) -> Tensor:
            return problem_inner(problem, params, hparams["weights"], 1.0 / factor)

        grads, _ = strategy(solver, spec)(
            inner,
            lambda p, h: problem.outer(flat(p)),
            parameters(problem),
            {"weights": factor * weights},
        )
        return factor * grads["weights"]

    assert_close(results(c), results(1.0))


def parameters(problem: Problem) -> dict[str, Tensor]:
    return {n: p.detach() for n, p in problem.model.named_parameters()}


def some_weights(spec: Spec) -> Tensor:
    generator = torch.Generator().manual_seed(spec.seed)
    return torch.rand(spec.batch_size, generator=generator, dtype=torch.float64) + 0.5


def flat(params: dict[str, Tensor]) -> Tensor:
    return torch.cat([p.reshape(-1) for p in params.values()])


def problem_inner(
    problem: Problem, params: dict[str, Tensor], weights: Tensor, factor: float = 1.0
) -> Tensor:
    """The inner loss without weight decay and damping, written out; losses times ``factor``."""
    losses, fixed = problem.call(
        flat(params), lambda m: (m.losses(problem.train), m.fixed(problem.train))
    )
    total = (weights * factor * losses).sum()
    if problem.spec.reduction == "mean":
        total = total / problem.spec.batch_size
    return total + fixed  # type: ignore[no-any-return]


@given(spec=specs, solver=solvers, other=st.integers(0, 10_000))
def test_additive_over_blocks_that_do_not_meet(spec: Spec, solver: str, other: int) -> None:
    """Two models side by side, their losses added: H is block diagonal."""
    left = anywhere(spec)
    right = anywhere(Spec(**{**vars(spec), "seed": other}))
    weights = some_weights(spec)

    def inner(params: dict[str, Tensor], hparams: dict[str, Tensor]) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for side, problem in (("left.", left), ("right.", right)):
            if part := picked(params, side):
                total = total + problem_inner(problem, part, hparams["weights"])
        return total

    def outer(params: dict[str, Tensor], hparams: dict[str, Tensor]) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for side, problem in (("left.", left), ("right.", right)):
            if part := picked(params, side):
                total = total + problem.outer(flat(part))
        return total

    named = {
        side: {side + n: p for n, p in parameters(problem).items()}
        for side, problem in (("left.", left), ("right.", right))
    }
    solve = strategy(solver, spec)
    parts = [solve(inner, outer, named[side], {"weights": weights})[0]["weights"] for side in named]
    both, _ = solve(inner, outer, named["left."] | named["right."], {"weights": weights})
    assert_close(both["weights"], parts[0] + parts[1], *parts)


def picked(params: dict[str, Tensor], side: str) -> dict[str, Tensor]:
    return {n.removeprefix(side): p for n, p in params.items() if n.startswith(side)}


@given(spec=specs, solver=solvers)
def test_a_zero_dev_gradient_gives_exactly_zero(spec: Spec, solver: str) -> None:
    problem = anywhere(spec)
    result = run(problem, solver, outer=lambda m, b: 0.0 * m.outer_loss(b))
    assert not bool(joined(result).any())
    assert result.info.trustworthy and result.info.num_hvps == 0


@given(spec=specs, solver=solvers)
def test_the_influence_is_the_gradient_by_weights_that_are_hyperparameters_themselves(
    spec: Spec, solver: str
) -> None:
    """And so `wrap` is the functional core: the weighter's gradients follow by the chain rule."""
    problem = anywhere(spec)
    result = run(problem, solver)
    decay = spec.decay

    def inner(params: dict[str, Tensor], hparams: dict[str, Tensor]) -> Tensor:
        square = sum(p.square().sum() for p in params.values())
        return problem_inner(problem, params, hparams["weights"]) + 0.5 * decay * square

    weights = problem.weigh()
    grads, info = strategy(solver, spec)(
        inner, lambda p, h: problem.outer(flat(p)), parameters(problem), {"weights": weights}
    )
    assert_close(result.influence, grads["weights"])
    assert info.num_hvps == result.info.num_hvps
    problem.weighter.zero_grad()
    problem.weighter(problem.frozen_losses(), problem.inputs(problem.train)).backward(
        grads["weights"]
    )
    for name, parameter in problem.weighter.named_parameters():
        if parameter.grad is not None:
            assert_close(result.grads[name], parameter.grad, grads["weights"])
