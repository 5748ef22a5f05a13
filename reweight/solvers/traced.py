"""Solvers as functions of tensors alone, which a compiler can follow.

The solvers themselves read numbers while they run, or choose what to do by them. Here a solve runs
for a fixed number of products, and what it would have chosen by is looked at afterwards.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reweight.solvers.base import Matvec, Solution
from reweight.solvers.identity import Identity
from reweight.solvers.krylov import BREAKDOWN, least_square
from reweight.solvers.neumann import Neumann, Series, fixed_terms
from reweight.solvers.status import Status

# Every product is a copy of the second derivative in the compiled program.
_MOST_PRODUCTS = 8


class UntraceableError(ValueError):
    """A solver that can't be followed by a compiler; the message says why."""


@dataclass(frozen=True)
class TracedSolver:
    """A solver that reads nothing while it runs.

    Attributes:
        num_products: the number of products with ``A``.
        solve: ``(matvec, b) -> (u, numbers)`` for flat vectors; ``numbers`` is ``[n]`` float64.
        solution: ``numbers -> Solution`` with the values of these numbers, and ``None`` for ``u``;
            ``None`` where the solver itself would have done something else than ``solve``.
    """

    num_products: int
    solve: Callable[[Matvec, Tensor], tuple[Tensor, Tensor]]
    solution: Callable[[Sequence[float]], Solution | None]


def traced(solver: Any, dtype: torch.dtype) -> TracedSolver:
    """The solver as a function of tensors, with the same result up to rounding.

    Args:
        solver: as the user stated it.
        dtype: of the right-hand side, and of products.

    Raises:
        UntraceableError: there is no such function for this solver.
    """
    if type(solver) is Identity:
        return TracedSolver(
            0,
            functools.partial(_scaled, solver.step_size),
            lambda _: Solution(None, Status.APPROXIMATED),
        )
    if type(solver) is not Neumann:
        raise UntraceableError(
            f"{solver!r} decides by values while it runs; Identity and Neumann can be compiled"
        )
    if solver.num_terms > _MOST_PRODUCTS:
        raise UntraceableError(
            f"{solver!r} has more than {_MOST_PRODUCTS} terms, each of which is compiled anew"
        )
    if solver.step_size == "auto":
        return TracedSolver(
            max(1, solver.num_terms),
            functools.partial(_krylov_terms, solver.num_terms),
            functools.partial(_krylov_solution, solver.num_terms, dtype),
        )
    step_size = float(solver.step_size)
    return TracedSolver(
        solver.num_terms,
        functools.partial(_fixed, solver.num_terms, step_size),
        functools.partial(_fixed_solution, step_size),
    )


def _products(*pairs: tuple[Tensor, Tensor]) -> Tensor:
    """Inner products in one process: a compiler can't follow how several reduce them."""
    return torch.stack([torch.dot(x, y) for x, y in pairs])


def _scaled(step_size: float, matvec: Matvec, b: Tensor) -> tuple[Tensor, Tensor]:
    return step_size * b, b.new_zeros(0, dtype=torch.float64)


def _fixed(num_terms: int, step_size: float, matvec: Matvec, b: Tensor) -> tuple[Tensor, Tensor]:
    u, numbers = fixed_terms(matvec, b, num_terms, step_size, _products)
    return u, torch.cat(numbers).double()


def _fixed_solution(step_size: float, numbers: Sequence[float]) -> Solution:
    first, *rest = numbers
    series = Series.of_fixed_step(first, rest[::3], rest[1::3], rest[2::3])
    return series.solution(None, step_size)


def _krylov_terms(num_terms: int, matvec: Matvec, b: Tensor) -> tuple[Tensor, Tensor]:
    """``Neumann(step_size="auto")`` in a basis of the Krylov space, as in :mod:`krylov`.

    The numbers are ``‖b‖²``; for each product its squared norm and that of what is left of it; the
    smallest Ritz value and the largest size of one; the norms of the terms after the first.
    """
    tiny = torch.finfo(b.dtype).tiny
    squared = _products((b, b))
    rows = [b * squared.rsqrt()]
    numbers, columns = [squared], []
    num_products = max(1, num_terms)
    for count in range(1, num_products + 1):
        before, product = torch.stack(rows), matvec(rows[-1])
        size = _products((product, product))
        along = before @ product
        product = product - along @ before
        left = _products((product, product))
        rows.append(product * left.clamp(min=tiny).rsqrt())
        columns.append(torch.cat((along, left.sqrt(), b.new_zeros(num_products - count))).double())
        numbers += [size, left]
    columns.append(torch.zeros_like(columns[0]))
    matrix = torch.stack(columns, 1)
    # Eigenvalues of what is not finite would raise here; the numbers show it to the caller.
    restricted = matrix[:num_products, :num_products].nan_to_num(0.0, 0.0, 0.0)
    values = torch.linalg.eigvalsh((restricted + restricted.T) / 2.0)
    curvature = values.abs().max()
    step_size = 1.0 / curvature
    first = squared.double().sqrt()
    coordinates = torch.cat((first, first.new_zeros(num_products)))
    total = torch.zeros_like(coordinates)
    sizes = []
    for _ in range(num_terms):
        total = total + coordinates
        coordinates = coordinates - step_size * (matrix @ coordinates)
        sizes.append(torch.linalg.vector_norm(coordinates))
    u = (step_size * (total + coordinates)).to(b.dtype) @ torch.stack(rows)
    met = torch.stack((values[0], curvature, *sizes))
    return u, torch.cat((torch.cat(numbers).double(), met))


def _krylov_solution(
    num_terms: int, dtype: torch.dtype, numbers: Sequence[float]
) -> Solution | None:
    count = 2 * max(1, num_terms)
    first, steps, (smallest, curvature, *terms) = (
        numbers[0],
        numbers[1 : 1 + count],
        numbers[1 + count :],
    )
    sizes, lefts = steps[::2], steps[1::2]
    # Where the space is invariant or the basis no longer orthonormal, the solver goes on in
    # another way; so it does where squares leave the range of the type.
    eps = torch.finfo(dtype).eps
    share = max(eps, (BREAKDOWN * eps) ** 2)
    if curvature == 0.0 or sizes[0] < least_square(dtype):
        return None
    if any(left <= share * size for size, left in zip(sizes, lefts, strict=True)):
        return None
    series = Series(math.sqrt(first))
    series.meet(curvature, smallest)
    for size in terms:
        series.add(size)
    return series.solution(None, 1.0 / curvature)
