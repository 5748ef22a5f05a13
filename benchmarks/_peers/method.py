"""What a contestant is, and the systems that it solves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from benchmarks._peers.cells import Case

STEP_SIZE = 0.1
# float64 rounding, amplified by three products.
EXACT = 1e-9
# What ten steps of conjugate gradients leave of the error.
CONVERGED = 1e-5
# float32 rounding, amplified by ten products and by sums over millions of entries.
ROUNDED = 1e-4


@dataclass(frozen=True)
class Setting:
    """A way to solve the linear system, the same for all contestants.

    Attributes:
        name: for the tables.
        kind: ``"series"`` is Neumann's with :data:`STEP_SIZE`, where no term gives the identity;
            ``"cg"`` is conjugate gradients with the damping of the case, and without a tolerance to
            stop at.
        num: products with the Hessian.
    """

    name: str
    kind: Literal["series", "cg"]
    num: int

    def damping(self, case: Case) -> float:
        return case.damping if self.kind == "cg" else 0.0


IDENTITY = Setting("identity", "series", 0)
NEUMANN = Setting("Neumann 3", "series", 3)
CG = Setting("CG 10", "cg", 10)
SETTINGS = (IDENTITY, NEUMANN, CG)

Gradient = Callable[[], Sequence[Tensor]]


class NotServed(Exception):
    """A contestant does not serve a problem or a setting; the message says why."""


@dataclass(frozen=True)
class Method:
    """A contestant.

    Attributes:
        name: for the tables.
        make: gives the call that returns the hypergradient, in the order of the weighter's
            parameters; raises :class:`NotServed`.
        missing: why it can't run here, or ``""``.
        reference: gives the call with the right numbers, where those of plain autograd are not.
        error: the relative error that the method has by design in float64; 0 for an exact one.
        error_in_float32: the same in float32.
        ours: a disagreement is then a defect, which ends the benchmark.
        eager: whether it runs torch's operations one by one, so that they can be counted.
    """

    name: str
    make: Callable[[Case, Setting], Gradient]
    missing: str = ""
    reference: Callable[[Case, Setting], Gradient] | None = None
    error: float = 0.0
    error_in_float32: float = 0.0
    ours: bool = False
    eager: bool = True

    def tolerance(self, setting: Setting, dtype: torch.dtype) -> float:
        """The largest relative difference from the reference that counts as equal."""
        if dtype == torch.float32:
            return max(ROUNDED, self.error_in_float32)
        return max(CONVERGED if setting.kind == "cg" else EXACT, self.error)
