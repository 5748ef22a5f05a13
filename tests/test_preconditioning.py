"""Second moments of the optimizer as a change of variables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from _support.problems import mean_squared_error, squared_errors
from benchmarks.catalogue.problems import classification, quadratic, relative_error
from reweight import (
    ConjugateGradient,
    Hypergradient,
    Identity,
    ImplicitHypergradient,
    Losses,
    Neumann,
    SecondMoments,
    TableWeighter,
    wrap,
)
from reweight.solvers import LinearSolver

SIZE = 8


def data(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(SIZE, 3, generator=generator, dtype=torch.float64)
    x = x * torch.tensor([1.0, 10.0, 0.1], dtype=torch.float64)  # badly scaled
    return x, torch.randn(SIZE, generator=generator, dtype=torch.float64), torch.arange(SIZE)


TRAIN, DEV = data(0), data(1)


def trained(make: Callable[..., torch.optim.Optimizer], steps: int = 200) -> Any:
    torch.manual_seed(0)
    model = nn.Linear(3, 1).double()
    optimizer = make(model.parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        mean_squared_error(model, TRAIN).backward()
        optimizer.step()
    return model, optimizer


def hypergradient(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    solver: LinearSolver,
) -> Hypergradient:
    return wrap(
        model,
        TableWeighter(SIZE).double(),
        lambda m, b: Losses(squared_errors(m, b), inputs=b[2]),
        mean_squared_error,
        optimizer,
        ImplicitHypergradient(solver, preconditioner=SecondMoments()),
    ).hypergradient(TRAIN, DEV)


def dense(model: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """Hessian, outer gradient and minus the per-sample gradients over the batch size."""
    a, a_dev = (torch.cat([b[0], torch.ones(SIZE, 1).double()], 1) for b in (TRAIN, DEV))
    theta = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    hessian = 2.0 / SIZE * a.T @ a
    v = 2.0 / SIZE * a_dev.T @ (a_dev @ theta - DEV[1])
    return hessian, v, -2.0 / SIZE * (a @ theta - TRAIN[1])[:, None] * a


def adam(parameters: Any, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.01, **options)


# -- the diagonal --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "moments"),
    [
        (adam, lambda s: s["exp_avg_sq"] / (1.0 - 0.999 ** float(s["step"]))),
        (
            lambda p: adam(p, amsgrad=True),
            lambda s: s["max_exp_avg_sq"] / (1.0 - 0.999 ** float(s["step"])),
        ),
        (
            lambda p: torch.optim.AdamW(p, lr=0.01),
            lambda s: s["exp_avg_sq"] / (1.0 - 0.999 ** float(s["step"])),
        ),
        (lambda p: torch.optim.RMSprop(p, lr=0.01), lambda s: s["square_avg"]),
        (
            lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True),
            lambda s: s["square_avg"] - s["grad_avg"].square(),
        ),
        (lambda p: torch.optim.Adagrad(p, lr=0.01), lambda s: s["sum"]),
        (
            lambda p: torch.optim.Adagrad(p, lr=0.01, lr_decay=0.1),
            lambda s: s["sum"] * (1.0 + 0.1 * 4.0) ** 2,
        ),
    ],
    ids=["adam", "amsgrad", "adamw", "rmsprop", "centered", "adagrad", "decayed"],
)
def test_the_diagonal_is_that_of_the_optimizers_step(make: Any, moments: Any) -> None:
    model, optimizer = trained(make, 5)
    named = dict(model.named_parameters())
    found = SecondMoments().diagonal(optimizer, named)
    for name, parameter in named.items():
        expected = 0.01 / (moments(optimizer.state[parameter]).sqrt() + optimizer.defaults["eps"])
        torch.testing.assert_close(found[name], expected)


def steps_of(optimizer: torch.optim.Optimizer, parameter: Tensor, gradient: Tensor) -> Tensor:
    """What the optimizer moves by in the end, where the gradient lasts."""
    for _ in range(5000):
        before = parameter.detach().clone()
        parameter.grad = gradient.clone()
        optimizer.step()
    return before - parameter.detach()


@pytest.mark.parametrize("kind", ["Adam", "AdamW", "RMSprop"])
def test_the_diagonal_is_the_step_per_unit_of_a_gradient_that_lasts(kind: str) -> None:
    parameter = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    gradient = torch.tensor([1.0, -0.1, 5.0], dtype=torch.float64)
    options = {"weight_decay": 0.0} if kind == "AdamW" else {}
    optimizer = getattr(torch.optim, kind)([parameter], lr=0.01, **options)
    step = steps_of(optimizer, parameter, gradient)
    diagonal = SecondMoments().diagonal(optimizer, {"p": parameter})["p"]
    torch.testing.assert_close(diagonal * gradient, step, rtol=1e-4, atol=0.0)  # of β2⁵⁰⁰⁰


def test_the_learning_rate_and_epsilon_of_each_group_are_read() -> None:
    model = nn.Linear(3, 1)
    optimizer = torch.optim.Adam(
        [{"params": [model.weight], "lr": 0.5}, {"params": [model.bias], "lr": 0.1, "eps": 1.0}]
    )
    model(torch.ones(1, 3)).sum().backward()  # every gradient is 1
    optimizer.step()
    found = SecondMoments().diagonal(optimizer, dict(model.named_parameters()))
    torch.testing.assert_close(found["weight"], torch.full((1, 3), 0.5))
    torch.testing.assert_close(found["bias"], torch.full((1,), 0.05))


def test_what_has_no_second_moment_yet_is_taken_for_the_mean() -> None:
    table, head = nn.Embedding(4, 2), nn.Linear(2, 1)
    idle = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([*table.parameters(), *head.parameters(), idle], lr=0.1)
    head(table(torch.tensor([1, 2]))).sum().backward()
    optimizer.step()
    params = {"table": table.weight, "head": head.weight, "idle": idle}
    found = SecondMoments().diagonal(optimizer, params)
    moments = [optimizer.state[p]["exp_avg_sq"] / 0.001 for p in (table.weight, head.weight)]
    seen = torch.cat([moments[0][1:3].reshape(-1), moments[1].reshape(-1)])
    expected = 0.1 / (seen.mean().sqrt() + 1e-8)
    torch.testing.assert_close(found["table"][0], expected.expand(2))
    torch.testing.assert_close(found["idle"], expected.expand(3))
    assert float(found["table"][0, 0]) < 1e3  # and not lr/ε
    assert not found["idle"].requires_grad


# -- what the solvers make of it -------------------------------------------------------------------


def test_the_identity_is_the_rule_of_sama() -> None:
    model, optimizer = trained(adam, 20)
    result = hypergradient(model, optimizer, Identity())
    diagonal = SecondMoments().diagonal(optimizer, dict(model.named_parameters()))
    d = torch.cat([t.reshape(-1) for t in diagonal.values()])
    _, v, samples = dense(model)
    assert relative_error(result.influence, samples @ (d * v)) < 1e-12
    assert result.info.num_hvps == 0


@pytest.mark.parametrize("num_terms", [0, 1, 3])
def test_a_series_is_the_derivative_through_as_many_steps_scaled_by_the_diagonal(
    num_terms: int,
) -> None:
    model, optimizer = trained(adam)
    diagonal = SecondMoments().diagonal(optimizer, dict(model.named_parameters()))
    d = torch.cat([t.reshape(-1) for t in diagonal.values()])
    a, a_dev = (torch.cat([b[0], torch.ones(SIZE, 1).double()], 1) for b in (TRAIN, DEV))
    weights = torch.ones(SIZE, dtype=torch.float64, requires_grad=True)
    # At the minimum, so that where the steps are taken does not matter.
    minimum = torch.linalg.lstsq(a, TRAIN[1]).solution
    with torch.no_grad():
        model.weight.copy_(minimum[None, :3])
        model.bias.copy_(minimum[3:])
    result = hypergradient(model, optimizer, Neumann(num_terms, step_size=1.0))
    theta = minimum
    for _ in range(num_terms + 1):
        gradient = 2.0 / SIZE * a.T @ (weights * (a @ theta - TRAIN[1]))
        theta = theta - d * gradient
    outer = (a_dev @ theta - DEV[1]).square().mean()
    (expected,) = torch.autograd.grad(outer, weights)
    # The outer gradient is taken after the steps there, before them here; at the minimum the steps
    # do not move.
    assert relative_error(result.influence, expected) < 1e-10


def test_the_solution_is_that_without_it() -> None:
    model, optimizer = trained(adam)
    hessian, v, samples = dense(model)
    expected = samples @ torch.linalg.solve(hessian, v)
    for solver in (ConjugateGradient(50, rtol=1e-14), Neumann(4000)):
        result = hypergradient(model, optimizer, solver)
        assert result.info.trustworthy
        assert relative_error(result.influence, expected) < 1e-8
    # The verdict speaks of the system itself, not of the one in other variables.
    values = torch.linalg.eigvalsh(hessian)
    assert result.info.curvature <= float(values[-1]) * (1 + 1e-12)
    assert result.info.smallest_curvature >= float(values[0]) * (1 - 1e-12)


def test_a_badly_scaled_system_takes_fewer_steps() -> None:
    scales = torch.logspace(0, 6, 12, dtype=torch.float64)
    problem = quadratic(torch.linspace(1.0, 2.0, 12, dtype=torch.float64))
    roots = problem.parted(scales.sqrt(), problem.params)

    def stretched(fn: Any) -> Any:
        return lambda p, h: fn({n: t * roots[n] for n, t in p.items()}, h)

    counts = {}
    for name, diagonal in (("plain", None), ("scaled", problem.parted(1.0 / scales, roots))):
        _, info = ImplicitHypergradient(ConjugateGradient(500, rtol=1e-8), preconditioner=diagonal)(
            stretched(problem.inner), stretched(problem.outer), problem.params, problem.hparams
        )
        assert info.trustworthy
        counts[name] = info.num_hvps
    assert counts["scaled"] < 0.5 * counts["plain"]


def test_any_mode_is_served() -> None:
    model, optimizer = trained(adam, 20)
    results = []
    for hvp in ("autograd", "func", "finite_difference"):
        strategy = ImplicitHypergradient(Neumann(3), hvp=hvp, preconditioner=SecondMoments())  # type: ignore[arg-type]
        rw = wrap(
            model,
            TableWeighter(SIZE).double(),
            lambda m, b: Losses(squared_errors(m, b), inputs=b[2]),
            mean_squared_error,
            optimizer,
            strategy,
        )
        results.append(rw.hypergradient(TRAIN, DEV).influence)
    for other in results[1:]:
        assert relative_error(other, results[0]) < 1e-6  # of the differences


# -- errors ----------------------------------------------------------------------------------------


def test_what_can_not_be_read_is_told() -> None:
    model, _ = trained(adam, 1)
    fresh = torch.optim.Adam(model.parameters())
    descent = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    mean_squared_error(model, TRAIN).backward()
    descent.step()
    rectified = torch.optim.RAdam(model.parameters(), lr=0.1)
    rectified.step()
    for optimizer, words in (
        (rectified, "RAdam.*'step'"),
        (None, "optimizer="),
        (fresh, r"\bstep\b"),
        (descent, "SGD.*'momentum_buffer'"),
    ):
        with pytest.raises(ValueError, match=words):
            hypergradient(model, optimizer, Identity())


@pytest.mark.parametrize(
    ("preconditioner", "error", "words"),
    [
        ({"weight": torch.ones(4, 1)}, ValueError, r"preconditioner.*\bbias\b"),
        ({"weight": torch.ones(4), "bias": torch.ones(1)}, ValueError, r"\(4,\).*\(4, 1\)"),
        (
            {"weight": torch.zeros(4, 1), "bias": torch.ones(1)},
            ValueError,
            "preconditioner.*positive",
        ),
        ("adam", TypeError, "preconditioner='adam'.*SecondMoments"),
        (SecondMoments(), ValueError, r"wrap\b.*dict"),
    ],
)
def test_a_preconditioner_that_makes_no_sense_is_told(
    preconditioner: Any, error: type[Exception], words: str
) -> None:
    problem = classification(2)
    with pytest.raises(error, match=words):
        ImplicitHypergradient(preconditioner=preconditioner)(
            problem.inner, problem.outer, problem.params, problem.hparams
        )
