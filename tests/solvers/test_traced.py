"""Solvers as functions of tensors alone give what the solvers give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from reweight import ConjugateGradient, Identity, Neumann, Nystrom, Solution, Status
from reweight.solvers import UntraceableError, traced

SIZE = 12


def symmetric(lowest: float) -> tuple[Tensor, Tensor]:
    """A matrix with curvatures from ``lowest`` to 2, and a right-hand side."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64)).Q
    matrix = (basis * torch.linspace(lowest, 2.0, SIZE, dtype=torch.float64)) @ basis.T
    return matrix, torch.randn(SIZE, generator=generator, dtype=torch.float64)


def run(solver: Any, matrix: Tensor, b: Tensor) -> tuple[Tensor, Solution | None, int]:
    count = 0

    def matvec(v: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return matrix @ v

    found = traced(solver, b.dtype)
    u, numbers = found.solve(matvec, b)
    assert numbers.dtype == torch.float64 and count == found.num_products
    return u, found.solution(numbers.tolist()), count


@pytest.mark.parametrize("lowest", [0.1, -1.0])
@pytest.mark.parametrize(
    "solver",
    [
        Identity(0.3),
        *(Neumann(n, step) for n in (0, 1, 3, 8) for step in ("auto", 0.4, 3.0)),
    ],
    ids=repr,
)
def test_a_traced_solver_gives_what_the_solver_gives(solver: Any, lowest: float) -> None:
    matrix, b = symmetric(lowest)
    u, solution, _ = run(solver, matrix, b)
    expected = solver(lambda v: matrix @ v, b)
    # Sums of a few terms in float64, in another order; diverging series grow to 1e6.
    torch.testing.assert_close(u, expected.value, rtol=1e-10, atol=1e-10)
    assert solution is not None and solution.status is expected.status
    for name in ("curvature", "smallest_curvature"):
        ours, theirs = getattr(solution, name), getattr(expected, name)
        assert (ours is None) == (theirs is None)
        assert ours is None or ours == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize(
    ("matrix", "b"),
    [
        (torch.eye(SIZE), torch.ones(SIZE)),  # the Krylov space has one dimension
        (torch.zeros(SIZE, SIZE), torch.ones(SIZE)),
        (torch.eye(SIZE), torch.zeros(SIZE)),
        (torch.full((SIZE, SIZE), torch.inf), torch.ones(SIZE)),
        (1e-200 * torch.eye(SIZE), torch.ones(SIZE)),  # squares underflow
    ],
    ids=["invariant", "flat", "zero", "infinite", "tiny"],
)
def test_where_the_solver_goes_another_way_there_is_no_solution(matrix: Tensor, b: Tensor) -> None:
    found = traced(Neumann(3), torch.float64)
    _, numbers = found.solve(lambda v: matrix.double() @ v, b.double())
    values = numbers.tolist()
    # The caller looks at what is not finite.
    assert any(x != x for x in values) or found.solution(values) is None


@pytest.mark.parametrize(
    ("solver", "reason"),
    [
        (ConjugateGradient(), "decides by values"),
        (Nystrom(), "decides by values"),
        (lambda matvec, b: Solution(b, Status.APPROXIMATED), "decides by values"),
        (Neumann(9), "more than 8 terms"),
    ],
)
def test_other_solvers_are_refused_in_words(solver: Any, reason: str) -> None:
    with pytest.raises(UntraceableError, match=reason):
        traced(solver, torch.float64)
