"""Whether two contestants return equal numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks._peers.cells import Case
from benchmarks._peers.method import Gradient, Method, Setting
from benchmarks._peers.plain import PLAIN


def apart(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The relative difference; infinite where something is missing or not a number."""
    if any(g is None for g in found):
        return float("inf")
    x, y = (torch.cat([t.detach().double().reshape(-1) for t in g]) for g in (found, expected))
    difference = float((x - y).norm() / y.norm())
    return difference if difference == difference else float("inf")


def ready(method: Method, case: Case, setting: Setting) -> Gradient:
    """The call of a contestant, in the context that it needs.

    torch's fused attention has no second derivative. Ours chooses another kernel by itself; the
    others are given it.
    """
    gradient = method.make(case, setting)
    if method.ours or not method.eager:
        return gradient

    def unfused() -> Sequence[Tensor]:
        with sdpa_kernel(SDPBackend.MATH):
            return gradient()

    return unfused


def reference(method: Method, case: Case, setting: Setting) -> Gradient:
    """The call whose numbers are right for a contestant."""
    if method.reference is None:
        return ready(PLAIN, case, setting)
    return ready(Method("reference", method.reference), case, setting)
