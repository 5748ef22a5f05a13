"""When the residual of an outer step is measured, and what is said of it in between."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from _support.wrapping import DEV, TRAIN, make
from reweight import (
    ConjugateGradient,
    Identity,
    ImplicitHypergradient,
    Neumann,
    Nystrom,
    Solution,
    SolveInfo,
    Status,
)
from reweight._curvature.operator import Operator


def infos(strategy: ImplicitHypergradient, steps: int, **options: Any) -> list[SolveInfo]:
    rw = make(hypergradient=strategy, **options)
    return [rw.hypergradient(TRAIN, DEV).info for _ in range(steps)]


def test_a_truncated_solver_is_measured_in_the_first_step_and_in_every_nth() -> None:
    found = infos(ImplicitHypergradient(Neumann(3), verdict_every=3), 7)
    assert [i for i, info in enumerate(found) if info.relative_residual is not None] == [0, 3, 6]
    assert [info.last_residual and info.last_residual.age for info in found] == [
        None, 1, 2, None, 1, 2, None,
    ]  # fmt: skip
    assert found[2].last_residual.value == found[0].relative_residual
    assert found[2].message.startswith(
        "a truncated step, as chosen: residual not measured in this step; "
        f"{found[0].relative_residual:.2g} 2 steps ago, 3 HVPs"
    )
    assert "one step ago" in found[1].message
    assert not found[1].trustworthy and not found[1].alarming


def test_measuring_does_not_change_the_result() -> None:
    rw, other = (
        make(hypergradient=ImplicitHypergradient(Neumann(3), verdict_every=n)) for n in (1, 100)
    )
    for _ in range(2):
        one, two = rw.hypergradient(TRAIN, DEV), other.hypergradient(TRAIN, DEV)
    assert one.info.relative_residual is not None and two.info.relative_residual is None
    # The mixed derivative alone is computed by the same operations.
    torch.testing.assert_close(one.influence, two.influence, rtol=1e-12, atol=0.0)
    for name, grad in one.grads.items():
        torch.testing.assert_close(grad, two.grads[name], rtol=1e-12, atol=0.0)
    assert one.info.curvature == two.info.curvature


@pytest.mark.parametrize(
    ("solver", "interval"),
    [
        (ConjugateGradient(), 1),
        (Nystrom(), 1),
        (Neumann(20), 1),
        (lambda matvec, b: Solution(b, Status.APPROXIMATED), 1),
        (Neumann(3), 20),
        (Identity(), 20),
    ],
)
def test_solvers_that_aim_at_the_inverse_are_always_measured(solver: Any, interval: int) -> None:
    assert ImplicitHypergradient(solver).interval == interval
    assert ImplicitHypergradient(solver, verdict_every=7).interval == 7


def test_what_a_solver_claims_is_always_measured() -> None:
    claims = lambda matvec, b: Solution(b, Status.CONVERGED)  # noqa: E731
    found = infos(ImplicitHypergradient(claims, verdict_every=1000), 3)
    assert all(info.relative_residual is not None for info in found)
    assert all(info.status is Status.UNCONFIRMED for info in found)


@pytest.mark.parametrize(("every", "expected"), [(None, [1, 0, 0]), (1, [1, 1, 1])])
def test_the_curvature_along_a_small_residual_is_sampled(
    every: int | None, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    original = Operator.smallest_along

    def counted(self: Operator, v: Tensor) -> float:
        calls.append(1)
        return original(self, v)

    monkeypatch.setattr(Operator, "smallest_along", counted)
    solver = ConjugateGradient(max_steps=200, rtol=1e-6)
    rw = make(hypergradient=ImplicitHypergradient(solver, damping=1.0, verdict_every=every))
    found, met = [], []
    for _ in range(3):
        calls.clear()
        met.append(rw.hypergradient(TRAIN, DEV).info)
        found.append(len(calls))
    assert found == expected
    # The same problem in every step, so what was measured once holds.
    assert all(info.trustworthy and info.error_estimate == met[0].error_estimate for info in met)


def test_divergence_is_told_without_a_residual() -> None:
    found = infos(ImplicitHypergradient(Neumann(6, step_size=1e4), verdict_every=1000), 2)
    assert found[1].relative_residual is None
    assert found[1].status is Status.DIVERGING and found[1].alarming
    assert found[1].message.startswith("not an exact hypergradient: residual not measured")


def test_a_problem_of_another_kind_is_measured_anew() -> None:
    rw = make(hypergradient=ImplicitHypergradient(Neumann(3), verdict_every=1000))
    measured = []
    for training in (True, True, False, False, True):
        rw.model.train(training)
        measured.append(rw.hypergradient(TRAIN, DEV).info.relative_residual is not None)
    assert measured == [True, False, True, False, False]


def test_the_functional_core_always_measures() -> None:
    params = {"w": torch.ones(2, dtype=torch.float64)}
    strategy = ImplicitHypergradient(Neumann(2), verdict_every=1000)
    for _ in range(2):
        _, info = strategy(
            lambda p, h: (h["a"] * p["w"].square()).sum(),
            lambda p, h: p["w"].sum(),
            params,
            {"a": torch.ones(2, dtype=torch.float64)},
        )
        assert info.relative_residual is not None


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "5", math.nan])
def test_an_interval_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"verdict_every.*whole number of at least 1.*20th"):
        ImplicitHypergradient(verdict_every=value)
