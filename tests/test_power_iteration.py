"""An estimate of the largest curvature that is kept warm."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from _support.problems import Counted, spd
from benchmarks.catalogue.problems import relative_error
from reweight import Neumann, PowerIteration, Status

seeds = st.integers(0, 100_000)
sizes = st.integers(1, 12)


def largest_eigenvalue(matrix: Tensor) -> float:
    return float(torch.linalg.eigvalsh(matrix).abs().max())


@given(seed=seeds, size=sizes)
def test_it_comes_from_below_and_gets_there_by_being_called(seed: int, size: int) -> None:
    matrix, b = spd(seed, size)
    largest = PowerIteration()
    found = [largest(lambda v: matrix @ v, b) for _ in range(300)]
    assert max(found) <= largest_eigenvalue(matrix) * (1 + 1e-12)
    # ‖Av‖ grows from one power to the next.
    assert all(
        after >= before * (1 - 1e-12) for before, after in zip(found, found[1:], strict=False)
    )
    assert found[-1] >= 0.99 * largest_eigenvalue(matrix)


def test_a_warm_call_takes_fewer_products_and_follows_a_drifting_matrix() -> None:
    matrix, b = spd(0, 20)
    product = Counted(matrix)
    largest = PowerIteration(num_steps=2, first_steps=10)
    largest(product, b)
    assert len(product.seen) == 10
    for step in range(50):
        product.matrix = product.matrix + 0.01 * spd(step, 20)[0]
        found = largest(product, b)
    assert len(product.seen) == 10 + 50 * 2
    assert found > 0.97 * largest_eigenvalue(product.matrix)


def test_another_size_or_type_starts_anew() -> None:
    largest = PowerIteration(num_steps=1, first_steps=4)
    for matrix, b in (spd(0, 5), spd(0, 7), tuple(t.float() for t in spd(0, 7))):
        product = Counted(matrix)
        largest(product, b)
        assert len(product.seen) == 4


def test_nothing_has_no_curvature_and_leaves_it_cold() -> None:
    largest = PowerIteration()
    assert largest(torch.zeros_like, torch.ones(3)) == 0.0
    matrix, b = spd(0, 3)
    assert largest(lambda v: matrix @ v, b) > 0.0


def test_no_global_random_state_is_touched() -> None:
    before = torch.get_rng_state()
    PowerIteration()(lambda v: 2.0 * v, torch.ones(3))
    assert torch.equal(torch.get_rng_state(), before)


@given(seed=seeds, size=sizes, num_terms=st.integers(1, 60))
def test_a_series_with_it_converges(seed: int, size: int, num_terms: int) -> None:
    matrix, b = spd(seed, size, lowest=1e-3)
    solution = Neumann(num_terms, PowerIteration())(lambda v: matrix @ v, b)
    assert solution.status in (Status.CONVERGED, Status.TRUNCATED)
    assert solution.curvature <= largest_eigenvalue(matrix) * (1 + 1e-12)
    if solution.status is Status.CONVERGED:  # the last term is below 1e-6 of the first
        assert relative_error(matrix @ solution.value, b) < 2e-6


def test_a_warm_series_is_the_fixed_one_at_its_step_size() -> None:
    matrix, b = spd(3, 8)
    largest = PowerIteration()
    for _ in range(100):
        largest(lambda v: matrix @ v, b)
    warm = Neumann(5, largest)(lambda v: matrix @ v, b)
    fixed = Neumann(5, 1.0 / warm.curvature)(lambda v: matrix @ v, b)
    assert relative_error(warm.value, fixed.value) < 1e-12


def test_an_operator_without_curvature_is_told() -> None:
    b = torch.tensor([1.0, 2.0])
    for num_terms in (0, 3):
        solution = Neumann(num_terms, PowerIteration())(torch.zeros_like, b)
        assert solution.status is Status.NEGATIVE_CURVATURE
        assert torch.equal(solution.value, b)


def test_it_reads_as_what_it_was_made_of() -> None:
    assert repr(PowerIteration(3)) == "PowerIteration(num_steps=3, first_steps=10, seed=0)"
