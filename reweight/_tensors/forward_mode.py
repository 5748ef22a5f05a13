"""Forward-mode differentiation: tensors that carry their derivative along one direction."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd import forward_ad

from reweight._tensors.vectors import Tree


@contextmanager
def moving(x: Tree, v: Tree) -> Iterator[Tree]:
    """``x`` with the derivative ``v``, which all that is computed from it inherits.

    No graph is recorded. The derivatives are lost where the context is closed.
    """
    with torch.no_grad(), forward_ad.dual_level():
        yield {n: forward_ad.make_dual(entry, v[n]) for n, entry in x.items()}  # type: ignore[no-untyped-call]


def velocity(x: Tensor) -> Tensor:
    """The derivative of a tensor, in its shape."""
    tangent = forward_ad.unpack_dual(x).tangent  # type: ignore[no-untyped-call]
    # A copy: the derivative may share memory with what was computed in place.
    return torch.zeros_like(x) if tangent is None else tangent.clone()
