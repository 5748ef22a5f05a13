"""Solvers of A u = b: what each returns, and what it says where it can't."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from _support.problems import spd
from benchmarks.catalogue.problems import relative_error
from reweight import ConjugateGradient, Identity, Neumann, Nystrom, Solution, Status
from reweight.solvers import LinearSolver

Matvec = Callable[[Any], Any]

# Solvers that reach A⁻¹b on the matrices of problems.spd: eigenvalues within [0.2, 2].
EXACT: dict[str, LinearSolver] = {
    "cg": ConjugateGradient(max_steps=60, rtol=1e-13),
    "neumann-auto": Neumann(num_terms=400),
    "neumann-fixed": Neumann(num_terms=300, step_size=0.5),
}
TRUNCATED: dict[str, LinearSolver] = {
    "identity": Identity(0.5),
    "cg-2": ConjugateGradient(max_steps=2),
    "neumann-auto-3": Neumann(),
    "neumann-auto-12": Neumann(num_terms=12),
    "neumann-fixed-3": Neumann(num_terms=3, step_size=0.4),
}
SOLVERS = EXACT | TRUNCATED
# These look at single columns of the matrix, so another basis is another approximation.
COLUMNS: dict[str, LinearSolver] = {
    "nystrom-3": Nystrom(3, damping=0.5),
}

# Where a property is tried for many solvers, each gets a share of the examples.
shared = settings(max_examples=settings.default.max_examples // 5)

seeds = st.integers(0, 100_000)
sizes = st.integers(1, 9)


def times(matrix: Tensor) -> Matvec:
    return lambda v: matrix @ v


def exact(solvers: dict[str, LinearSolver] = EXACT) -> Any:
    return pytest.mark.parametrize("solver", solvers.values(), ids=solvers.keys())


every = exact(SOLVERS | COLUMNS)


# -- answers -----------------------------------------------------------------------------------


@exact()
@shared
@given(seed=seeds, size=sizes)
def test_the_inverse_is_reached_on_positive_definite_systems(
    solver: LinearSolver, seed: int, size: int
) -> None:
    matrix, b = spd(seed, size)
    solution = solver(times(matrix), b)
    assert solution.status is Status.CONVERGED
    # Condition number 10, residual 1e-13.
    assert relative_error(solution.value, torch.linalg.solve(matrix, b)) < 1e-11


@exact()
@pytest.mark.parametrize("c", [1.0, 0.5, 1.7])
def test_multiples_of_the_identity_are_divided_by(solver: LinearSolver, c: float) -> None:
    b = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    solution = solver(lambda v: c * v, b)
    assert solution.status is Status.CONVERGED
    torch.testing.assert_close(solution.value, b / c, rtol=1e-14, atol=0.0)


@pytest.mark.parametrize("c", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize(
    ("solver", "products"), [(ConjugateGradient(), 1), (Neumann(), 3)], ids=["cg", "neumann"]
)
def test_the_first_product_is_enough_where_all_curvatures_are_alike(
    solver: LinearSolver, c: float, products: int
) -> None:
    # Neumann reads nothing between its products, so it makes all that it may make.
    calls = []

    def matvec(v: Tensor) -> Tensor:
        calls.append(v)
        return c * v

    b = torch.tensor([3.0, -1.0])
    torch.testing.assert_close(solver(matvec, b).value, b / c)
    assert len(calls) == products


@given(seed=seeds, size=sizes, num_terms=st.integers(0, 12), step_size=st.floats(0.01, 0.9))
def test_neumann_is_its_series(seed: int, size: int, num_terms: int, step_size: float) -> None:
    matrix, b = spd(seed, size)
    factor = torch.eye(size, dtype=torch.float64) - step_size * matrix
    series = sum(torch.linalg.matrix_power(factor, n) @ b for n in range(num_terms + 1))
    solution = Neumann(num_terms, step_size)(times(matrix), b)
    # Rounding only: eps times a few operations for each of the terms.
    assert (solution.value - step_size * series).norm() <= 1e-14 * step_size * sum(
        (torch.linalg.matrix_power(factor, n) @ b).norm() for n in range(num_terms + 1)
    )


def test_neumann_without_terms_is_the_step_size_times_b() -> None:
    b = torch.tensor([1.0, -2.0])

    def matvec(v: Tensor) -> Tensor:
        raise AssertionError("no product is needed")

    assert torch.equal(Neumann(num_terms=0, step_size=0.25)(matvec, b).value, 0.25 * b)
    assert torch.equal(Identity(step_size=0.25)(matvec, b).value, 0.25 * b)


@given(seed=seeds, size=sizes, num_terms=st.integers(0, 8))
def test_neumann_auto_is_the_series_at_the_inverse_of_the_curvature_it_reports(
    seed: int, size: int, num_terms: int
) -> None:
    # Up to eight terms come from the products that the step size was chosen from.
    matrix, b = spd(seed, size)
    calls = []

    def matvec(v: Tensor) -> Tensor:
        calls.append(v)
        return matrix @ v

    auto = Neumann(num_terms)(matvec, b)
    assert len(calls) <= max(1, num_terms)
    assert auto.curvature is not None
    # Ritz values come from a basis that is orthonormal to 1e-8 at worst (see Krylov.settled).
    assert auto.curvature <= float(torch.linalg.eigvalsh(matrix)[-1]) * (1 + 1e-9)
    fixed = Neumann(num_terms, step_size=1.0 / auto.curvature)(times(matrix), b)
    assert relative_error(auto.value, fixed.value) < 1e-12


@pytest.mark.parametrize("num_terms", [9, 30, 200])
def test_neumann_auto_makes_no_more_products_than_terms(num_terms: int) -> None:
    matrix, b = spd(0, 30, lowest=0.001)
    calls = []

    def matvec(v: Tensor) -> Tensor:
        calls.append(v)
        return matrix @ v

    solution = Neumann(num_terms)(matvec, b)
    assert len(calls) <= max(1, num_terms)
    residual = relative_error(matrix @ solution.value, b)
    assert residual < 1.0


# -- invariances -------------------------------------------------------------------------------


@every
@shared
@given(seed=seeds, size=sizes, exponent=st.integers(-90, 90))
def test_scaling_b_by_a_power_of_two_scales_the_answer_exactly(
    solver: LinearSolver, seed: int, size: int, exponent: int
) -> None:
    matrix, b = spd(seed, size)
    plain, scaled = (solver(times(matrix), c * b) for c in (1.0, 2.0**exponent))
    assert torch.equal(scaled.value, 2.0**exponent * plain.value)
    assert scaled.status is plain.status


@pytest.mark.parametrize(
    "solver",
    [Identity(0.5), Neumann(3, 0.4), *COLUMNS.values(), *EXACT.values()],
    ids=["identity", "neumann-fixed-3", *COLUMNS, *EXACT],
)
@shared
@given(seed=seeds, size=sizes, c=st.floats(-3.0, 3.0))
def test_linear_solvers_are_linear(solver: LinearSolver, seed: int, size: int, c: float) -> None:
    # Truncated conjugate gradients and "auto" choose their polynomial by b, so they are not.
    matrix, b = spd(seed, size)
    other = spd(seed + 1, size)[1]
    apart = c * solver(times(matrix), b).value + solver(times(matrix), other).value
    together = solver(times(matrix), c * b + other).value
    size_of_parts = abs(c) * float(b.norm()) + float(other.norm())
    # Eigenvalues from 0.2, residuals of 1e-13.
    assert float((apart - together).norm()) <= 1e-11 * size_of_parts


@exact(SOLVERS)
@shared
@given(seed=seeds, size=sizes)
def test_the_answer_does_not_depend_on_the_basis(
    solver: LinearSolver, seed: int, size: int
) -> None:
    matrix, b = spd(seed, size)
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
    turned = solver(times(turn @ matrix @ turn.T), turn @ b).value
    # Rounding, amplified where a Krylov space closes early.
    assert relative_error(turn.T @ turned, solver(times(matrix), b).value) < 1e-8


@every
def test_a_dict_of_tensors_gives_what_the_flat_vector_gives(solver: LinearSolver) -> None:
    matrix, b = spd(3, 6)
    parts = {"w": b[:4].view(2, 2), "none": b[:0], "scalar": b[4], "bias": b[5:]}

    def matvec(v: dict[str, Tensor]) -> dict[str, Tensor]:
        assert {n: t.shape for n, t in v.items()} == {n: t.shape for n, t in parts.items()}
        product = matrix @ torch.cat([t.reshape(-1) for t in v.values()])
        return {
            "w": product[:4].view(2, 2),
            "none": product[:0],
            "scalar": product[4],
            "bias": product[5:],
        }

    flat, named = solver(times(matrix), b), solver(matvec, parts)
    assert list(named.value) == list(parts)
    assert torch.equal(torch.cat([t.reshape(-1) for t in named.value.values()]), flat.value)
    assert (named.status, named.curvature, named.detail) == (
        flat.status,
        flat.curvature,
        flat.detail,
    )


@every
def test_leaves_of_several_types_are_served(solver: LinearSolver) -> None:
    matrix, b = spd(3, 6)
    parts = {"single": b[:4].float(), "double": b[4:]}

    def matvec(v: dict[str, Tensor]) -> dict[str, Tensor]:
        product = matrix @ torch.cat([v["single"].double(), v["double"]])
        return {"single": product[:4].float(), "double": product[4:]}

    value = solver(matvec, parts).value
    assert {n: t.dtype for n, t in value.items()} == {n: t.dtype for n, t in parts.items()}
    together = torch.cat([value["single"].double(), value["double"]])
    # Single precision.
    assert relative_error(together, solver(times(matrix), b).value) < 1e-5


@every
def test_neither_b_nor_what_matvec_was_given_is_written_to(solver: LinearSolver) -> None:
    matrix, b = spd(1, 5)
    kept, seen = b.clone(), []

    def matvec(v: Tensor) -> Tensor:
        seen.append((v, v.clone()))
        return matrix @ v

    solver(matvec, b)
    assert torch.equal(b, kept)
    assert all(torch.equal(v, copy) for v, copy in seen)


# -- sizes -------------------------------------------------------------------------------------


@every
def test_a_zero_right_hand_side_has_the_answer_zero(solver: LinearSolver) -> None:
    solution = solver(lambda v: v / 0.0, torch.zeros(3))
    assert solution.status is Status.CONVERGED
    assert torch.equal(solution.value, torch.zeros(3))


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e-38, 1e-30, 1e30])
def test_tiny_and_huge_right_hand_sides_are_like_any_other(
    solver: LinearSolver, size: float, dtype: torch.dtype
) -> None:
    matrix, b = spd(2, 4)
    matrix, b = matrix.to(dtype), b.to(dtype)
    plain, scaled = solver(times(matrix), b), solver(times(matrix), size * b)
    assert scaled.status is plain.status
    # Rounding; 1e-38 leaves single precision a digit less.
    torch.testing.assert_close(
        scaled.value / size, plain.value, rtol=1e-5, atol=1e-5 * float(plain.value.abs().max())
    )


@pytest.mark.parametrize("solver", [ConjugateGradient(), Neumann(), Neumann(30)], ids=repr)
@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e20, 1e30])
def test_tiny_and_huge_operators_are_like_any_other_in_single_precision(
    solver: LinearSolver, size: float
) -> None:
    matrix, b = (t.float() for t in spd(2, 4))
    plain, scaled = solver(times(matrix), b), solver(times(size * matrix), b)
    assert scaled.status is plain.status
    # The series itself is the same; only rounding differs.
    torch.testing.assert_close(scaled.value * size, plain.value, rtol=1e-4, atol=1e-4)


@every
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_right_hand_side_that_is_not_finite_is_refused(solver: LinearSolver, bad: float) -> None:
    with pytest.raises(FloatingPointError, match="right-hand side.*not finite"):
        solver(lambda v: v, torch.tensor([1.0, bad]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rtol", [1e-5, 1e-15, 1e-30])
def test_conjugate_gradients_stay_finite_after_convergence(rtol: float, dtype: torch.dtype) -> None:
    matrix, b = (t.to(dtype) for t in spd(5, 6))
    solution = ConjugateGradient(max_steps=300, rtol=rtol)(times(matrix), b)
    digits = 100.0 * torch.finfo(dtype).eps
    assert relative_error(solution.value, torch.linalg.solve(matrix, b)) < max(10 * rtol, digits)


# -- where there is no answer ------------------------------------------------------------------


def test_conjugate_gradients_stop_at_negative_curvature_with_the_last_good_iterate() -> None:
    # From b the first direction curves up and the second, for any b between the axes, down.
    matrix = torch.diag(torch.tensor([4.0, -1.0], dtype=torch.float64))
    b = torch.tensor([1.0, 0.2], dtype=torch.float64)
    seen = []

    def matvec(v: Tensor) -> Tensor:
        seen.append(v)
        return matrix @ v

    solution = ConjugateGradient()(matvec, b)
    assert solution.status is Status.NEGATIVE_CURVATURE
    assert len(seen) == 2
    assert float(seen[-1] @ matrix @ seen[-1]) < 0.0
    assert "in step 2" in solution.detail
    # The minimiser of the residual along the first direction, b itself.
    step = float(b @ matrix @ b) / float((matrix @ b) @ (matrix @ b))
    torch.testing.assert_close(solution.value, step * b)


def test_conjugate_gradients_return_b_where_the_first_direction_curves_down() -> None:
    b = torch.tensor([1.0, 2.0])
    solution = ConjugateGradient()(lambda v: -v, b)
    assert solution.status is Status.NEGATIVE_CURVATURE
    assert torch.equal(solution.value, b)
    assert "-1" in solution.detail


@given(seed=seeds, size=st.integers(2, 12), max_steps=st.integers(1, 30))
def test_conjugate_gradients_never_return_more_residual_than_nothing(
    seed: int, size: int, max_steps: int
) -> None:
    """Also where the matrix is singular and b has a part that no u can reach."""
    matrix, b = singular(seed, size)
    solution = ConjugateGradient(max_steps, rtol=1e-10)(times(matrix), b)
    if not torch.equal(solution.value, b):  # b is returned where the first step curves down
        assert float((b - matrix @ solution.value).norm()) <= float(b.norm()) * (1 + 1e-9)


@given(seed=seeds, size=st.integers(2, 8))
# Right-hand sides with next to nothing of the only steep direction.
@example(seed=3378, size=2)
@example(seed=1136, size=3)
@example(seed=3288, size=3)
def test_conjugate_gradients_approach_a_least_squares_solution_of_a_singular_system(
    seed: int, size: int
) -> None:
    """What a parameter that only the outer loss uses makes of the system."""
    matrix, b = singular(seed, size)
    reachable = torch.linalg.pinv(matrix, rtol=1e-8) @ b
    solution = ConjugateGradient(max_steps=50, rtol=1e-10)(times(matrix), b)
    project = torch.linalg.pinv(matrix, rtol=1e-8) @ matrix
    # Plain conjugate gradients end up to 1e17 times too large here. Half the digits remain.
    assert float((project @ solution.value - reachable).norm()) <= 1e-4 * float(b.norm())


def singular(seed: int, size: int) -> tuple[Tensor, Tensor]:
    matrix, b = spd(seed, size)
    values, vectors = torch.linalg.eigh(matrix)
    values[: (size + 1) // 2] = 0.0
    return (vectors * values) @ vectors.T, b


def test_a_diverging_series_says_so_with_numbers() -> None:
    matrix = torch.diag(torch.tensor([0.5, 4.0], dtype=torch.float64))
    b = torch.ones(2, dtype=torch.float64)
    solution = Neumann(num_terms=10, step_size=1.0)(times(matrix), b)
    assert solution.status is Status.DIVERGING
    assert re.search(r"\b3\b", solution.detail)  # |1 - 4|
    assert "curvature 4" in solution.detail
    assert "0.25" in solution.detail
    assert "step_size" in str(solution.status)


def test_a_step_size_that_will_diverge_is_seen_before_the_terms_grow() -> None:
    # Three terms are not enough for the growing one to outweigh the shrinking one.
    matrix = torch.diag(torch.tensor([1.0, 4.0], dtype=torch.float64))
    b = torch.tensor([1.0, 0.3], dtype=torch.float64)
    assert Neumann(3, step_size=0.55)(times(matrix), b).status is Status.DIVERGING


@given(seed=seeds, size=sizes, num_terms=st.integers(1, 60))
def test_an_automatic_step_size_does_not_diverge(seed: int, size: int, num_terms: int) -> None:
    matrix, b = spd(seed, size, lowest=1e-3)
    solution = Neumann(num_terms)(times(matrix), b)
    assert solution.status in (Status.CONVERGED, Status.TRUNCATED)
    if solution.status is Status.CONVERGED:  # the last term is below 1e-6 of the first
        assert relative_error(matrix @ solution.value, b) < 2e-6


def test_growing_terms_at_a_safe_step_size_are_told_as_negative_curvature() -> None:
    matrix = torch.diag(torch.tensor([1.0, -0.9], dtype=torch.float64))
    solution = Neumann(num_terms=20)(times(matrix), torch.ones(2, dtype=torch.float64))
    assert solution.status is Status.NEGATIVE_CURVATURE


def test_an_operator_without_curvature_gives_b_and_says_why() -> None:
    b = torch.tensor([1.0, 2.0])
    for solver in (Neumann(), ConjugateGradient()):
        solution = solver(torch.zeros_like, b)
        assert solution.status is Status.NEGATIVE_CURVATURE
        assert torch.equal(solution.value, b)


def test_a_cut_series_says_how_much_is_left() -> None:
    matrix = torch.diag(torch.tensor([0.5, 1.0], dtype=torch.float64))
    b = torch.tensor([1.0, 1.0], dtype=torch.float64)
    solution = Neumann(num_terms=2, step_size=1.0)(times(matrix), b)
    assert solution.status is Status.TRUNCATED
    assert "0.18" in solution.detail  # 0.25 / √2
    assert ConjugateGradient(max_steps=1)(times(matrix), b).status is Status.MAX_STEPS
    assert Identity()(times(matrix), b).status is Status.APPROXIMATED


@given(seed=seeds)
def test_nearly_invariant_subspaces_do_not_cost_digits(seed: int) -> None:
    """A right-hand side that is all but an eigenvector, where a Lanczos process nearly ends."""
    matrix, noise = spd(seed, 5)
    eigenvector = torch.linalg.eigh(matrix).eigenvectors[:, 2]
    b = eigenvector + 1e-7 * noise
    solution = Neumann(num_terms=400)(times(matrix), b)
    assert relative_error(solution.value, torch.linalg.solve(matrix, b)) < 1e-12


# -- fields ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: Neumann(num_terms=-1), "num_terms=-1"),
        (lambda: Neumann(num_terms=2.5), "num_terms=2.5"),  # type: ignore[arg-type]
        (lambda: Neumann(num_terms=True), "num_terms=True"),
        (lambda: Neumann(step_size=0.0), "step_size=0.0"),
        (lambda: Neumann(step_size=-1.0), "step_size=-1.0"),
        (lambda: Neumann(step_size=math.nan), "step_size=nan"),
        (lambda: Neumann(step_size=math.inf), "step_size=inf"),
        (lambda: Neumann(step_size="fast"), "step_size='fast'"),  # type: ignore[arg-type]
        (lambda: ConjugateGradient(max_steps=0), "max_steps=0"),
        (lambda: ConjugateGradient(rtol=0.0), "rtol=0.0"),
        (lambda: ConjugateGradient(rtol=-1e-3), "rtol=-0.001"),
        (lambda: Identity(step_size=0.0), "step_size=0.0"),
        (lambda: Nystrom(rank=0), "rank=0"),
        (lambda: Nystrom(damping=0.0), "damping=0.0"),
        (lambda: Nystrom(seed=-1), "seed=-1"),
    ],
)
def test_fields_out_of_range_are_refused_by_name(make: Callable[[], object], names: str) -> None:
    with pytest.raises(ValueError) as caught:
        make()
    assert names in str(caught.value)


def test_solvers_are_values() -> None:
    assert Neumann(3) == Neumann(3) and hash(Neumann(3)) == hash(Neumann(3))
    assert repr(ConjugateGradient()) == "ConjugateGradient(max_steps=10, rtol=1e-05)"
    with pytest.raises(AttributeError):
        Neumann().num_terms = 4  # type: ignore[misc]


def test_a_status_reads_as_a_sentence() -> None:
    assert "step" in str(Status.MAX_STEPS) and " " in str(Status.MAX_STEPS)
    assert Solution(torch.ones(1), Status.CONVERGED).detail == ""
