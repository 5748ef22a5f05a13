"""What a solver does, where the set-up is right."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from _support.checking import DEV, TRAIN, make, network
from reweight import ConjugateGradient, Identity, Neumann, Solution, Status, check_hypergradient

# What a verdict says, in whichever words.
SET_UP = re.compile("set-?up is right")


def test_a_truncated_solver_is_told_from_a_wrong_set_up() -> None:
    report = check_hypergradient(make(network("mlp"), solver=Neumann(1)), TRAIN, DEV)
    assert not report.ok
    assert report.exact_error < 1e-5 < report.error
    assert SET_UP.search(report.verdict) and "num_terms" in report.advice


@dataclasses.dataclass(frozen=True)
class Own:
    """Solves exactly, but another system."""

    factor: float = 1.0
    shift: float = 0.0

    def __call__(self, matvec: Any, b: Any) -> Solution:
        def shifted(v: Any) -> Any:
            return {n: x - self.shift * v[n] for n, x in matvec(v).items()}

        u = ConjugateGradient(200, rtol=1e-13)(shifted, b).value
        return Solution({n: self.factor * x for n, x in u.items()}, Status.CONVERGED)


@pytest.mark.parametrize(
    ("decay", "damping", "what"), [(0.2, 0.0, "weight decay"), (0.2, 0.1, "damping")]
)
def test_a_solver_that_leaves_a_part_out_is_told(decay: float, damping: float, what: str) -> None:
    solver = Own(shift=decay if what == "weight decay" else damping)
    rw = make(network("mlp"), solver, decay, damping)
    report = check_hypergradient(rw, TRAIN, DEV)
    assert not report.ok and report.exact_error < 1e-6
    assert SET_UP.search(report.verdict) and "Own(factor=1.0, shift=" in report.verdict
    assert f"without {what}" in report.advice and "matvec" in report.advice


def test_a_solver_that_loses_a_factor_is_told() -> None:
    report = check_hypergradient(make(solver=Own(factor=0.1)), TRAIN, DEV)
    assert "Own(factor=0.1)" in report.verdict
    assert "factor 0.1" in report.advice


@pytest.mark.parametrize(
    ("solver", "verdict"),
    [
        (Neumann(), r"Neumann\(num_terms=3\).*truncated"),
        (Identity(0.3), r"Identity\(step_size=0\.3\).*multiple of the identity"),
        (ConjugateGradient(2), r"ConjugateGradient\(max_steps=2\).*not solve"),
        (Own(1.0 + 1e-4), r"Own\(factor=1\.0001\).*residual.*0\.0001.*1e-06"),
    ],
)
def test_the_verdict_says_what_kind_of_solver_it_is(solver: Any, verdict: str) -> None:
    report = check_hypergradient(make(network("mlp"), solver), TRAIN, DEV, rtol=1e-6)
    assert SET_UP.search(report.verdict) and re.search(verdict, report.verdict)
    assert "disagrees" not in str(report).lower()
    assert f"{report.exact_error:.1g}" in report.advice
    assert len(str(report).splitlines()[0]) <= 110
