"""A low-rank Hessian from a few of its columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from reweight.solvers._check import positive, whole
from reweight.solvers.base import LinearSolver, Solution, Status

# Eigenvalues of the core below this share of the largest, in units of rounding, are noise: dividing
# by them would make the columns explode.
_NOISE = 64.0


@dataclass(frozen=True)
class Nystrom(LinearSolver):
    r"""``u = (A_r + ρI)⁻¹ b`` with ``A_r = C W⁺ Cᵀ`` built from ``r`` columns ``C`` of ``A``.

    ``W`` are the rows of ``C`` that belong to the chosen columns (Hataya and Yamada, "Nyström
    method for accurate and scalable implicit differentiation", AISTATS 2023). The inverse is
    applied by the Woodbury identity, written with the singular vectors of ``C W^{-1/2}`` so that
    a small ``ρ`` costs no digits. It has no step size to diverge and no series to truncate; what
    the columns do not show is taken for ``ρ``. Negative eigenvalues of ``W`` are left out and told.

    Columns are chosen uniformly, or by ridge leverage scores ``(A(A + ρI)⁻¹)_jj``, which prefer
    coordinates that the large curvatures live on and never take one on which ``A`` vanishes, such
    as an embedding row that the batch does not look up. The scores come from a random sketch with
    ``rank`` products of its own (Alaoui and Mahoney, NeurIPS 2015).

    Args:
        rank: ``r``, columns of ``A``: one product each.
        damping: ``ρ``. It is part of the approximation, beside the damping of
            :class:`reweight.ImplicitHypergradient`, which is part of ``A``.
        columns: ``"random"``, or ``"leverage"`` at twice the products.
        seed: of the choice. The same seed chooses alike at every call, and no other random state is
            read or written.

    Example:
        >>> import torch
        >>> A = torch.tensor([[2.0, 1.0], [1.0, 0.5]])               # of rank one
        >>> solution = Nystrom(rank=1, damping=0.5)(lambda v: A @ v, torch.tensor([2.0, 1.0]))
        >>> solution.value, solution.status.name                     # b / (2.5 + ρ)
        (tensor([0.6667, 0.3333]), 'LOW_RANK')
    """

    rank: int = 10
    damping: float = 1e-2
    columns: Literal["random", "leverage"] = "random"
    seed: int = 0

    def __post_init__(self) -> None:
        whole("Nystrom", "rank", self.rank, 1)
        positive("Nystrom", "damping", self.damping)
        whole("Nystrom", "seed", self.seed, 0)
        if self.columns not in ("random", "leverage"):
            raise ValueError(f'Nystrom(columns={self.columns!r}): choose "random" or "leverage"')

    def solve_scaled(self, matvec: Callable[[Tensor], Tensor], b: Tensor, eps: float) -> Solution:
        """Look at the columns, then apply the inverse."""
        flat, shape = b.reshape(-1), b.shape

        def times(v: Tensor) -> Tensor:
            return matvec(v.view(shape)).reshape(-1)

        generator = torch.Generator().manual_seed(self.seed)
        rank = min(self.rank, flat.numel())
        chosen = self._choose(times, flat, rank, generator, eps)
        columns = torch.stack([times(_unit(flat, int(j))) for j in chosen], 1)
        vectors, values, lowest = _eigenpairs(columns, columns[chosen], eps)
        inside = vectors.T @ flat
        outside = flat - vectors @ inside
        u = vectors @ (inside / (values + self.damping)) + outside / self.damping
        largest = float(values.max()) if values.numel() else None
        # What the columns do not show is taken for ρ.
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

    def _choose(
        self,
        times: Callable[[Tensor], Tensor],
        flat: Tensor,
        rank: int,
        generator: torch.Generator,
        eps: float,
    ) -> Tensor:
        """Distinct coordinates, ``[rank]`` or fewer."""
        if self.columns == "random":
            order = torch.randperm(flat.numel(), generator=generator)
            return order[:rank].to(flat.device)
        probes = torch.randn(flat.numel(), rank, generator=generator, dtype=torch.float64)
        probes = torch.linalg.qr(probes).Q.to(flat)
        sketch = torch.stack([times(probe) for probe in probes.T], 1)
        vectors, values, _ = _eigenpairs(sketch, probes.T @ sketch, eps)
        scores = vectors.square() @ (values / (values + self.damping))
        # Rounding gives coordinates without curvature a score of about eps².
        scores = torch.where(scores > eps * scores.max(), scores, 0.0).double().cpu()
        count = min(rank, int((scores > 0.0).sum()))
        if not count:
            return torch.arange(rank, device=flat.device)
        # Without replacement, in proportion to the scores: the largest of log(score) + Gumbel.
        noise = -torch.empty_like(scores).exponential_(generator=generator).log()
        return (scores.log() + noise).topk(count).indices.to(flat.device)


def _unit(like: Tensor, index: int) -> Tensor:
    unit = torch.zeros_like(like)
    unit[index] = 1.0
    return unit


def _eigenpairs(columns: Tensor, core: Tensor, eps: float) -> tuple[Tensor, Tensor, float]:
    """Orthonormal vectors and values > 0 of ``C W⁺ Cᵀ``, and the lowest eigenvalue of ``W``.

    The lowest is zero unless it is below rounding.
    """
    size, turn = torch.linalg.eigh((core + core.T).double() / 2.0)
    noise = _NOISE * eps * float(size.abs().max())
    kept = size > noise
    factor = columns.double() @ (turn[:, kept] / size[kept].sqrt())
    vectors, singular, _ = torch.linalg.svd(factor, full_matrices=False)
    lowest = float(size[0])
    values = singular.square()
    return vectors.to(columns), values.to(columns), lowest if lowest < -noise else 0.0
