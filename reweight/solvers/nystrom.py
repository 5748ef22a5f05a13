"""A low-rank Hessian from a few of its columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from reweight.solvers._fields import positive, whole
from reweight.solvers.base import LinearSolver, Solution
from reweight.solvers.status import Status

# Eigenvalues of W below this share of the largest, in units of rounding, are noise: a division by
# them would amplify it.
_NOISE = 64.0


@dataclass(frozen=True)
class Nystrom(LinearSolver):
    r"""``u = (A_r + ρI)⁻¹ b`` with ``A_r = C W⁺ Cᵀ`` built from ``r`` columns ``C`` of ``A``.

    ``W`` are the rows of ``C`` that belong to the chosen columns (Hataya and Yamada, "Nyström
    method for accurate and scalable implicit differentiation", AISTATS 2023). The inverse is
    applied by the Woodbury identity, written with the singular vectors of ``C W^{-1/2}`` so that
    a small ``ρ`` loses no precision. There is no step size that could diverge and no series to
    truncate. Curvature outside of the columns' span is assumed to be ``ρ``. Negative eigenvalues of
    ``W`` are left out, and the status then says so.

    Columns are chosen uniformly at random.

    Args:
        rank: ``r``, columns of ``A``: one product each.
        damping: ``ρ``. It is part of the approximation, in addition to the damping of
            :class:`reweight.ImplicitHypergradient`, which is part of ``A``.
        seed: seed of the choice. The same seed gives the same columns at every call, and no other
            random state is read or written.

    Example:
        >>> import torch
        >>> A = torch.tensor([[2.0, 1.0], [1.0, 0.5]])               # of rank one
        >>> solution = Nystrom(rank=1, damping=0.5)(lambda v: A @ v, torch.tensor([2.0, 1.0]))
        >>> solution.value, solution.status.name                     # b / (2.5 + ρ)
        (tensor([0.6667, 0.3333]), 'LOW_RANK')
    """

    rank: int = 10
    damping: float = 1e-2
    seed: int = 0

    def __post_init__(self) -> None:
        whole("Nystrom", "rank", self.rank, 1)
        positive("Nystrom", "damping", self.damping)
        whole("Nystrom", "seed", self.seed, 0)

    def solve_scaled(self, matvec: Callable[[Tensor], Tensor], b: Tensor, eps: float) -> Solution:
        """Compute the columns, then apply the inverse."""
        flat, shape = b.reshape(-1), b.shape

        def times(v: Tensor) -> Tensor:
            return matvec(v.view(shape)).reshape(-1)

        generator = torch.Generator().manual_seed(self.seed)
        rank = min(self.rank, flat.numel())
        chosen = torch.randperm(flat.numel(), generator=generator)[:rank].to(flat.device)
        columns = torch.stack([times(_basis_vector(flat, int(j))) for j in chosen], 1)
        vectors, values, lowest = _eigenpairs(columns, columns[chosen], eps)
        inside = vectors.T @ flat
        outside = flat - vectors @ inside
        u = vectors @ (inside / (values + self.damping)) + outside / self.damping
        largest = float(values.max()) if values.numel() else None
        # Outside of the columns' span the curvature is assumed to be ρ.
        found = values if values.numel() == flat.numel() else [*values, self.damping]
        smallest = min(map(float, found))
        detail = f"rank {values.numel()}, damping {self.damping:.3g}"
        if lowest < 0.0:
            return Solution(
                u.view(shape),
                Status.NEGATIVE_CURVATURE,
                largest,
                f"an eigenvalue of {lowest:.3g} among the chosen columns was left out; {detail}",
                lowest,
            )
        return Solution(u.view(shape), Status.LOW_RANK, largest, detail, smallest)


def _basis_vector(like: Tensor, index: int) -> Tensor:
    vector = torch.zeros_like(like)
    vector[index] = 1.0
    return vector


def _eigenpairs(columns: Tensor, core: Tensor, eps: float) -> tuple[Tensor, Tensor, float]:
    """Orthonormal vectors and values > 0 of ``C W⁺ Cᵀ``, and the lowest eigenvalue of ``W``.

    The lowest is zero unless it is below rounding.
    """
    size, basis = torch.linalg.eigh((core + core.T).double() / 2.0)
    noise = _NOISE * eps * float(size.abs().max())
    kept = size > noise
    factor = columns.double() @ (basis[:, kept] / size[kept].sqrt())
    vectors, singular, _ = torch.linalg.svd(factor, full_matrices=False)
    lowest = float(size[0])
    values = singular.square()
    return vectors.to(columns), values.to(columns), lowest if lowest < -noise else 0.0
