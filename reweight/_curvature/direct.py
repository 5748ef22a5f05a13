"""A solver that takes the exact inverse of a linearisation."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from reweight._curvature.linearise import Linearisation
from reweight._tensors import Tree, flatten, unflatten
from reweight.solvers import LinearSolver, Solution, Status


class DirectSolver(LinearSolver):
    """``u = A⁻¹ b`` by :attr:`Linearisation.inverse`.

    Args:
        linearisation: one that has an inverse.
        shift: curvature by name that is added to it.
        like: the parameters that a flat vector is made of.
        free: masks of constants; there may be none.

    Raises:
        ValueError: some entries are constants.
    """

    def __init__(
        self, linearisation: Linearisation, shift: Mapping[str, float], like: Tree, free: Tree
    ) -> None:
        if free:
            raise ValueError(
                f"SampleSpace() can't hold entries of {next(iter(free))} constant, which a "
                "gradient hook sets to zero: use ConjugateGradient()"
            )
        assert linearisation.inverse is not None
        self._inverse, self._shift, self._like = linearisation.inverse, shift, like

    def __repr__(self) -> str:
        return "SampleSpace()"

    def solve_scaled(self, matvec: Callable[[Tensor], Tensor], b: Tensor, eps: float) -> Solution:
        """Solve without a product."""
        value = torch.empty_like(b)
        out = unflatten(value, self._like)
        largest = self._inverse(unflatten(b, self._like), self._shift, out)
        own = value.untyped_storage().data_ptr()
        if any(x.untyped_storage().data_ptr() != own for x in out.values()):
            value = flatten(out)  # of another type, or at an odd offset
        smallest = min(self._shift[name] for name in self._like)
        return Solution(value, Status.CONVERGED, largest, "", smallest, least=smallest)
