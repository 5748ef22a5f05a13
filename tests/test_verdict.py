"""What a hypergradient says about itself."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from _support.implicit import EXACT, Tree, hypergradient
from _support.problems import ridge
from benchmarks.catalogue.problems import relative_error
from reweight import (
    ConjugateGradient,
    Identity,
    ImplicitHypergradient,
    Neumann,
    Solution,
    SolveInfo,
    Status,
)


def test_any_callable_is_a_solver() -> None:
    problem = ridge()

    def direct(matvec: Any, b: Tree) -> Solution:
        flat = torch.linalg.solve(problem.hessian, torch.cat([t.reshape(-1) for t in b.values()]))
        return Solution({"weight": flat[None, :-1], "bias": flat[-1:]}, Status.CONVERGED)

    result = hypergradient(problem, ImplicitHypergradient(direct))
    assert relative_error(result.influence, problem.influence) < 1e-10
    assert result.info.num_hvps == 0 and result.info.trustworthy


def test_a_solver_that_claims_too_much_is_not_believed() -> None:
    problem = ridge()
    strategy = ImplicitHypergradient(lambda matvec, b: Solution(b, Status.CONVERGED))
    info = hypergradient(problem, strategy).info
    assert info.relative_residual > 1e-3
    assert not info.trustworthy
    assert f"{info.relative_residual:.2g}" in info.message


def test_a_solver_whose_answer_is_not_finite_is_refused_by_name() -> None:
    problem = ridge()

    def broken(matvec: Any, b: Tree) -> Solution:
        return Solution({n: t * math.nan for n, t in b.items()}, Status.CONVERGED)

    with pytest.raises(FloatingPointError, match="broken.*not finite"):
        hypergradient(problem, ImplicitHypergradient(broken))


def test_a_maximum_of_the_inner_loss_is_told() -> None:
    params = {"a": torch.tensor([0.0, 0.0], dtype=torch.float64)}
    hparams = {"h": torch.tensor([1.0, 1.0], dtype=torch.float64)}

    def inner(p: Tree, h: Tree) -> Tensor:  # a saddle: curvatures 2 and -1
        return p["a"][0].square() - 0.5 * p["a"][1].square() - (h["h"] * p["a"]).sum()

    for solver in (ConjugateGradient(), Neumann(), Neumann(200)):
        _, info = ImplicitHypergradient(solver)(
            inner, lambda p, h: 3.0 * p["a"][0] + p["a"][1], params, hparams
        )
        assert not info.trustworthy
        assert "positive definite" in info.message and "damping" in info.message
    grads, info = ImplicitHypergradient(EXACT, damping=2.0)(
        inner, lambda p, h: 3.0 * p["a"][0] + p["a"][1], params, hparams
    )
    assert info.trustworthy
    torch.testing.assert_close(grads["h"], torch.tensor([0.75, 1.0], dtype=torch.float64))


def test_messages_are_sentences_with_numbers() -> None:
    problem = ridge()
    cut = hypergradient(problem, ImplicitHypergradient(Neumann())).info
    assert "3 HVPs" in cut.message and "num_terms" in cut.message
    assert "step size" in cut.message
    exact = hypergradient(problem, ImplicitHypergradient(EXACT)).info
    assert f"{exact.relative_residual:.2g}" in exact.message
    identity = hypergradient(problem, ImplicitHypergradient(Identity(0.1))).info
    assert identity.num_hvps == 0 and "identity" in identity.message
    diverging = hypergradient(problem, ImplicitHypergradient(Neumann(10, 5.0))).info
    assert "grow" in diverging.message


def test_the_curvature_is_bounded_by_the_largest_eigenvalue() -> None:
    problem = ridge()
    largest = float(torch.linalg.eigvalsh(problem.hessian)[-1])
    for solver in (EXACT, Neumann(8)):
        info = hypergradient(problem, ImplicitHypergradient(solver)).info
        assert info.curvature is not None and info.smallest_curvature is not None
        assert 0.5 * largest < info.curvature <= largest * (1 + 1e-12)
        assert info.smallest_curvature <= info.curvature


def test_an_info_without_curvature_is_judged_by_its_residual() -> None:
    assert SolveInfo(1e-4, 0, Status.CONVERGED, None, "none").trustworthy
    assert not SolveInfo(1e-2, 0, Status.CONVERGED, None, "none").trustworthy
    assert not SolveInfo(math.nan, 0, Status.CONVERGED, None, "none").trustworthy
