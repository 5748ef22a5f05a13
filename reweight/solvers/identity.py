"""The Hessian replaced by a multiple of the identity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from reweight.solvers._fields import positive
from reweight.solvers.base import LinearSolver, Solution
from reweight.solvers.status import Status


@dataclass(frozen=True)
class Identity(LinearSolver):
    """``u = α·b``: no Hessian-vector product at all (Luketina et al., ICML 2016).

    With ``ImplicitHypergradient(Identity(), preconditioner=SecondMoments())`` it is the rule of
    SAMA (Choe et al., NeurIPS 2023): one step of the adaptive optimizer in the place of the
    inverse Hessian. Under :func:`reweight.wrap` the step is of first order: the losses of the train
    batch are differentiated along ``u``, and no graph of them is made.

    Args:
        step_size: ``α``, the inverse of the curvature that is assumed everywhere.

    Example:
        >>> import torch
        >>> Identity(step_size=0.5)(lambda v: v, torch.tensor([2.0, 4.0])).value
        tensor([1., 2.])
    """

    keeps_products: ClassVar[bool] = False
    step_size: float = 1.0

    def __post_init__(self) -> None:
        positive("Identity", "step_size", self.step_size)

    @property
    def aims_at_inverse(self) -> bool:
        """No: nothing is solved."""
        return False

    def solve_scaled(self, matvec: Callable[[Tensor], Tensor], b: Tensor, eps: float) -> Solution:
        """Return ``α·b``."""
        return Solution(self.step_size * b, Status.APPROXIMATED)
