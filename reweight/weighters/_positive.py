"""Positive numbers from unconstrained parameters."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

_LOG2 = math.log(2.0)


def positive(x: Tensor) -> Tensor:
    """``softplus(x) / log 2``: positive, 1 at 0, and linear for large ``x``.

    Unlike ``exp`` its slope is bounded: a step of the optimizer changes the result by at most
    1/log 2 = 1.44 times the step.
    """
    # This is log2(1 + e^x) in a single kernel, so that bfloat16 also gives exactly 1 at 0.
    return F.softplus(x / _LOG2, beta=_LOG2)


def positive_inverse(y: float) -> float:
    """The ``x`` for which ``positive(x) == y``, for ``y > 0``."""
    scaled = y * _LOG2
    return scaled + math.log(-math.expm1(-scaled))
