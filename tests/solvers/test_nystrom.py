"""A Hessian of a few columns."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from _support.problems import Counted, spd
from benchmarks.catalogue.problems import relative_error
from reweight import Nystrom, Status

seeds = st.integers(0, 100_000)


def low_rank(seed: int, size: int, rank: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(size, rank, generator=generator, dtype=torch.float64)
    return factor @ factor.T / size


@given(seed=seeds, rank=st.integers(1, 8), damping=st.sampled_from([0.01, 0.3, 5.0]))
def test_it_is_the_formula_of_the_paper(seed: int, rank: int, damping: float) -> None:
    """Hataya and Yamada, Eq. 6, on the columns that were asked for."""
    matrix, b = spd(seed, 8)
    product = Counted(matrix)
    solution = Nystrom(rank, damping)(product, b)
    chosen = [int(v.argmax()) for v in product.seen]
    assert len(set(chosen)) == rank
    c, w = matrix[:, chosen], matrix[chosen][:, chosen]
    core = w + c.T @ c / damping
    expected = b / damping - c @ torch.linalg.solve(core, c.T @ b) / damping**2
    assert relative_error(solution.value, expected) < 1e-9


@given(seed=seeds)
def test_all_columns_give_the_damped_inverse(seed: int) -> None:
    matrix, b = spd(seed, 6)
    for damping in (1.0, 1e-3, 1e-10):
        solution = Nystrom(99, damping)(Counted(matrix), b)
        expected = torch.linalg.solve(matrix + damping * torch.eye(6).double(), b)
        # A damping of 1e-10 costs no digits: what lies outside the columns is nothing here, and
        # rounding there is divided by the damping.
        assert relative_error(solution.value, expected) < max(1e-11, 1e-14 / damping)


@given(seed=seeds)
def test_as_many_columns_as_the_rank_are_exact(seed: int) -> None:
    matrix = low_rank(seed, 12, 3)
    b = spd(seed, 12)[1]
    solution = Nystrom(3, 0.1)(Counted(matrix), b)
    expected = torch.linalg.solve(matrix + 0.1 * torch.eye(12).double(), b)
    # The three columns may be nearly dependent.
    assert relative_error(solution.value, expected) < 1e-5


def test_it_takes_a_product_a_column() -> None:
    matrix, b = spd(0, 9)
    product = Counted(matrix)
    Nystrom(4)(product, b)
    assert len(product.seen) == 4


def test_a_negative_eigenvalue_is_left_out_and_told() -> None:
    matrix = torch.diag(torch.tensor([2.0, -1.0, 3.0], dtype=torch.float64))
    b = torch.ones(3, dtype=torch.float64)
    solution = Nystrom(3, 0.5)(Counted(matrix), b)
    assert solution.status is Status.NEGATIVE_CURVATURE
    assert re.search("eigenvalue.* -1", solution.detail)
    assert solution.smallest_curvature == pytest.approx(-1.0)
    expected = torch.tensor([1 / 2.5, 1 / 0.5, 1 / 3.5], dtype=torch.float64)
    torch.testing.assert_close(solution.value, expected)


def test_a_matrix_of_zeros_is_all_damping() -> None:
    b = torch.tensor([1.0, 2.0])
    torch.testing.assert_close(Nystrom(2, 0.5)(torch.zeros_like, b).value, 2.0 * b)


def test_the_seed_chooses_and_no_other_random_state_is_touched() -> None:
    matrix, b = spd(0, 30)
    before = torch.get_rng_state()
    one, same, other = (Nystrom(2, seed=s)(Counted(matrix), b).value for s in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_right_hand_side_of_any_shape_is_served() -> None:
    matrix, b = spd(1, 6)
    flat = Nystrom(3)(lambda v: matrix @ v, b).value
    square = Nystrom(3)(lambda v: (matrix @ v.reshape(-1)).view(2, 3), b.view(2, 3)).value
    assert torch.equal(square.reshape(-1), flat)
