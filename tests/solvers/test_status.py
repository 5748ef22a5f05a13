"""What an ending of a solve says of itself."""

from __future__ import annotations

import pickle

import pytest

from reweight import SolveInfo, Status


@pytest.mark.parametrize("status", Status)
def test_an_ending_is_of_one_kind_at_most(status: Status) -> None:
    kinds = [status.by_design, status.alarming, status is Status.CONVERGED]
    assert sum(kinds) <= 1
    assert status.by_design == bool(status.design)


def test_the_kinds_are_those_of_the_solvers() -> None:
    assert {s for s in Status if s.by_design} == {
        Status.TRUNCATED,
        Status.LOW_RANK,
        Status.APPROXIMATED,
    }
    assert {s for s in Status if s.final} == {Status.CONVERGED, Status.DISJOINT}
    assert Status.DIVERGING.alarming and Status.UNCONFIRMED.alarming and Status.DISJOINT.alarming


def info(status: Status, residual: float) -> SolveInfo:
    return SolveInfo(residual, 3, status, 1.0, "autograd")


def test_negative_curvature_is_alarming_where_the_direction_is_useless() -> None:
    assert not info(Status.NEGATIVE_CURVATURE, 0.9).alarming
    assert info(Status.NEGATIVE_CURVATURE, 11.0).alarming
    # A truncated direction is what was asked for, whatever its residual.
    assert not info(Status.TRUNCATED, 11.0).alarming
    assert info(Status.DIVERGING, 0.1).alarming


def test_a_pickled_ending_does_not_depend_on_its_sentence() -> None:
    pickled = pickle.dumps(Status.TRUNCATED)
    assert pickle.loads(pickled) is Status.TRUNCATED
    assert b"TRUNCATED" in pickled
    assert Status.TRUNCATED.value.encode() not in pickled
