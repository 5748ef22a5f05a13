"""Every solver on every problem: right to what it states, or it says that it is not, and why."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.catalogue import first_order, gauss_newton
from benchmarks.catalogue.problems import PROBLEMS, relative_error
from benchmarks.catalogue.solvers import SOLVERS, allowed_error, strategy
from reweight import ConjugateGradient, ImplicitHypergradient, Neumann, Nystrom, Status


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", PROBLEMS)
def test_an_answer_is_right_or_known_not_to_be(name: str, solver: str) -> None:
    problem = PROBLEMS[name]()
    grads, info = strategy(solver, problem)(
        problem.inner, problem.outer, problem.params, problem.hparams
    )
    if info.trustworthy:
        assert problem.error(grads) <= allowed_error(info)
    else:
        assert info.status is not Status.CONVERGED
        assert f"{info.relative_residual:.2g}" in info.message
        # A sentence names the cause: that of the status, or the curvature that was met.
        assert ("not positive definite" if info.curves_down else str(info.status)) in info.message


@pytest.mark.parametrize("solver", gauss_newton.SOLVERS)
@pytest.mark.parametrize("name", gauss_newton.PROBLEMS)
@pytest.mark.filterwarnings("ignore")  # dense Jacobians of a bag; what steps warn of
def test_with_gauss_newton_matrices_too(name: str, solver: str) -> None:
    problem = gauss_newton.PROBLEMS[name]
    try:
        found = problem.hypergradient(gauss_newton.SOLVERS[solver])
    except ValueError as error:
        assert problem.refused and problem.refused in str(error)
        return
    if found.info.trustworthy:
        assert gauss_newton.error(problem, found.influence) <= allowed_error(found.info)
    else:
        assert found.info.status is not Status.CONVERGED


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [n for n, p in gauss_newton.PROBLEMS.items() if not p.refused])
def test_gauss_newton_systems_with_damping_are_solved(name: str) -> None:
    problem = gauss_newton.PROBLEMS[name]
    for solver in ("CG(200, rtol=1e-10)", "SampleSpace()"):
        found = problem.hypergradient(gauss_newton.SOLVERS[solver])
        assert found.info.trustworthy
        # A residual of 1e-10, and condition numbers of up to 1e4.
        assert gauss_newton.error(problem, found.influence) < 1e-7


@pytest.mark.parametrize("step", first_order.STEPS)
@pytest.mark.parametrize("name", PROBLEMS)
def test_a_first_order_step_is_what_it_says(name: str, step: str) -> None:
    found, expected = first_order.hypergradient(PROBLEMS[name](), step)
    assert found.info.first_order and not found.info.trustworthy
    # Rounding; and of central differences, eps^⅔ times third derivatives of order ten.
    tolerance = 1e-13 if found.info.hvp_mode == "forward" else 1e-8
    assert relative_error(found.grads["weights"], expected) < tolerance


SOLVABLE = [n for n in PROBLEMS if n not in ("singular", "indefinite", "the same, untrained")]


@pytest.mark.parametrize("name", SOLVABLE)
def test_conjugate_gradients_answer_wherever_there_is_an_answer(name: str) -> None:
    problem = PROBLEMS[name]()
    grads, info = strategy("CG(200, rtol=1e-10)", problem)(
        problem.inner, problem.outer, problem.params, problem.hparams
    )
    assert info.trustworthy
    assert problem.error(grads) < 1e-10


def test_a_small_residual_that_hides_a_large_error_is_not_trusted() -> None:
    """All but nothing of the outer gradient lies where the curvature is 1e-7."""
    curvature = torch.tensor([1.0, 0.9, 1e-7], dtype=torch.float64)
    part = torch.tensor([1.0, 1.0, 1e-4], dtype=torch.float64)
    params = {"w": torch.zeros(3, dtype=torch.float64)}
    hparams = {"h": torch.zeros(3, dtype=torch.float64)}
    grads, info = ImplicitHypergradient(ConjugateGradient(rtol=1e-3, max_steps=50))(
        lambda p, h: 0.5 * (curvature * p["w"].square()).sum() - (h["h"] * p["w"]).sum(),
        lambda p, h: (part * p["w"]).sum(),
        params,
        hparams,
    )
    exact = part / curvature
    assert float((grads["h"] - exact).norm()) > 0.9 * float(exact.norm())
    assert info.status is Status.CONVERGED and info.relative_residual < 1e-3
    assert not info.trustworthy
    assert info.error_estimate is not None and info.error_estimate > 0.1
    assert str(Status.ILL_CONDITIONED) in info.message


@pytest.mark.parametrize("share", [5e-4, 1e-5, 1e-8])
@pytest.mark.parametrize(
    "solver",
    [Neumann(100), Neumann(3), Neumann(50, 0.5), ConjugateGradient(50, 1e-12), Nystrom(2, 1e-9)],
    ids=repr,
)
def test_a_small_part_of_the_gradient_where_there_is_no_curvature_is_not_trusted(
    solver: Any, share: float
) -> None:
    """There is no solution, though the residual is as small as that part."""
    params = {"w": torch.zeros(2, dtype=torch.float64)}
    hparams = {"h": torch.zeros(2, dtype=torch.float64)}
    part = torch.tensor([1.0, share], dtype=torch.float64)
    _, info = ImplicitHypergradient(solver)(
        lambda p, h: p["w"][0].square() - (h["h"] * p["w"]).sum(),
        lambda p, h: (part * p["w"]).sum(),
        params,
        hparams,
    )
    assert not info.trustworthy


def test_a_flat_residual_below_a_steep_one_is_seen() -> None:
    curvature = torch.tensor([1.0, 1.00001, 1e-7], dtype=torch.float64)
    part = torch.tensor([1.0, 1.0, 1e-7], dtype=torch.float64)
    zero = torch.zeros(3, dtype=torch.float64)
    grads, info = ImplicitHypergradient(ConjugateGradient())(
        lambda p, h: 0.5 * (curvature * p["w"].square()).sum() - (h["h"] * p["w"]).sum(),
        lambda p, h: (part * p["w"]).sum(),
        {"w": zero},
        {"h": zero},
    )
    exact = part / curvature
    assert float((grads["h"] - exact).norm()) > 0.3 * float(exact.norm())
    assert not info.trustworthy
