"""What a hypergradient says about itself."""

from __future__ import annotations

import math
import re
from dataclasses import replace
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
    assert cut.message.startswith("a truncated step, as chosen")
    assert f"{cut.relative_residual:.2g} after 3 HVPs" in cut.message
    assert "step size" in cut.message and str(Status.TRUNCATED) in cut.message
    exact = hypergradient(problem, ImplicitHypergradient(EXACT)).info
    assert f"{exact.relative_residual:.2g}" in exact.message
    identity = hypergradient(problem, ImplicitHypergradient(Identity(0.1))).info
    assert identity.num_hvps == 0 and identity.message.startswith("first-order, by choice")
    diverging = hypergradient(problem, ImplicitHypergradient(Neumann(10, 5.0))).info
    assert "grow" in diverging.message


SHORT = SolveInfo(0.31, 3, Status.TRUNCATED, 4.0, "autograd", 0.1, "step size 0.25")


def test_a_step_that_was_chosen_does_not_read_like_a_failure() -> None:
    """Nothing is to be done, so there is no advice; the numbers say what it is."""
    for info in (SHORT, replace(SHORT, smallest_curvature=-0.1)):
        assert not info.trustworthy and not info.alarming
        assert "as chosen" in info.message and "not an exact" not in info.message
        assert not re.search(r"\b(raise|lower|use|add|train)\b", info.message)
    assert "-0.1" in replace(SHORT, smallest_curvature=-0.1).message


def test_a_choice_of_solver_explains_no_other_fault() -> None:
    wrong = replace(SHORT, caveat="second derivatives are wrong")
    assert wrong.message == "not a hypergradient: second derivatives are wrong"
    # A series that has converged, but along a flat direction: the choice was not to truncate it.
    flat = replace(SHORT, relative_residual=1e-4, error_estimate=0.5)
    assert "as chosen" not in flat.message and str(Status.ILL_CONDITIONED) in flat.message
    downwards = replace(SHORT, status=Status.NEGATIVE_CURVATURE, smallest_curvature=-1.0)
    assert "as chosen" not in downwards.message and "damping" in downwards.message


def test_losses_without_a_common_parameter_are_not_announced_as_trustworthy() -> None:
    """The zero is exact, so it is trusted, but the message is a warning."""
    info = SolveInfo(0.0, 0, Status.DISJOINT, None, "none")
    assert info.trustworthy and info.alarming
    assert info.message.startswith("a hypergradient of zero: the outer loss uses no parameter")


def test_a_printed_verdict_has_its_numbers_and_no_field_names() -> None:
    printed = str(replace(SHORT, error_estimate=0.4)).splitlines()
    assert printed[0] == SHORT.message
    assert re.search("autograd.*0.1 to 4.*0.4", printed[1]) and len(printed) == 2
    assert "inf" not in str(replace(SHORT, error_estimate=math.inf))
    nothing = SolveInfo(0.0, 0, Status.CONVERGED, None, "none")
    assert str(nothing) == nothing.message
    assert "status=Status.TRUNCATED," in repr(SHORT)


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
