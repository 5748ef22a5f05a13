"""Vectors over parameters: one tensor, or a dict of named tensors.

A dict keeps the names of the parameters, so that an error message can name them. Solvers work on
one flat tensor.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import Tensor

from reweight._tensors.seam import all_entries

Tree = dict[str, Tensor]
# Sums of this many squares stay in float32; sums of these sums are in float64.
_BLOCK = 4096
# For norms in this range, float32 holds the squares of all entries that matter.
_SQUARES_FIT = (1e-12, 1e15)
Vector = TypeVar("Vector", Tensor, Tree)


def tensors(x: Tensor | Tree) -> list[Tensor]:
    """The tensors of ``x``, in its order."""
    return [x] if isinstance(x, Tensor) else list(x.values())


def new_leaves(x: Tree) -> Tree:
    """Leaves that require gradients and share the storage of ``x``, but not its graph."""
    return {name: entry.detach().requires_grad_(True) for name, entry in x.items()}


def detached(x: Tree) -> Tree:
    """The same tensors without their graph."""
    return {name: entry.detach() for name, entry in x.items()}


def _tree_map(fn: Callable[..., Tensor], x: Vector, *rest: Vector) -> Vector:
    """Apply ``fn`` tensor by tensor; every further argument has the keys of the first."""
    if isinstance(x, Tensor):
        return fn(x, *rest)
    return {name: fn(entry, *(other[name] for other in rest)) for name, entry in x.items()}


def zeros_like(x: Vector) -> Vector:
    """A zero vector shaped like ``x``."""
    return _tree_map(torch.zeros_like, x)


def filled(grads: Iterable[Tensor | None], like: Tree) -> Tree:
    """Gradients under the names of ``like``: dense, and zero where the gradient is ``None``."""
    return {
        name: torch.zeros_like(x) if g is None else dense(g)
        for (name, x), g in zip(like.items(), grads, strict=True)
    }


def dense(x: Tensor) -> Tensor:
    """The tensor in dense layout."""
    return x.to_dense() if x.is_sparse else x


def stored(x: Tree) -> Tree:
    """The values that sparse tensors store, and dense tensors as they are."""
    return {name: entry._values() if entry.is_sparse else entry for name, entry in x.items()}


def axpy(a: float, x: Vector, y: Vector) -> Vector:
    """``a·x + y``, out of place."""
    return _tree_map(lambda u, v: torch.add(v, u, alpha=a), x, y)


def scale(a: float, x: Vector) -> Vector:
    """``a·x``, out of place."""
    return _tree_map(lambda u: u * a, x)


def dot(x: Tensor | Tree, y: Tensor | Tree) -> float:
    """The Euclidean inner product over all entries."""
    pairs = zip(tensors(x), tensors(y), strict=True)
    products = [torch.dot(a.reshape(-1), b.reshape(-1)) for a, b in pairs]
    return float(all_entries(_stacked(products).sum()))


def norm(x: Tensor | Tree) -> float:
    """The Euclidean norm, as exact as if all squares were summed in float64."""
    if isinstance(x, Tensor):
        size = float(all_entries(_norm(x), power=2))
    else:
        size = _norm_of_norms([_norm(entry) for entry in tensors(x)])
    if _SQUARES_FIT[0] < size < _SQUARES_FIT[1]:
        return size
    return _norm_of_norms(
        [torch.linalg.vector_norm(entry, dtype=torch.float64) for entry in tensors(x)]
    )


def _norm(x: Tensor) -> Tensor:
    """The norm of one tensor: in float32 within blocks, which takes a third of the time.

    The error of a block's sum is below 1e-7 of it, and the errors of the blocks average out.
    """
    if x.dtype != torch.float32 or x.numel() < 2 * _BLOCK or not x.is_contiguous():
        size: Tensor = torch.linalg.vector_norm(x, dtype=torch.float64)
        return size
    flat = x.detach().view(-1)
    whole = flat.numel() // _BLOCK * _BLOCK
    blocks = torch.linalg.vector_norm(flat[:whole].view(-1, _BLOCK), dim=1).double()
    rest = torch.linalg.vector_norm(flat[whole:], dtype=torch.float64)
    return _norm(torch.cat([blocks, rest.view(1)]))


def _norm_of_norms(norms: list[Tensor]) -> float:
    return float(all_entries(torch.linalg.vector_norm(_stacked(norms)), power=2))


def max_abs(x: Tensor | Tree) -> float:
    """The largest absolute entry; ``nan`` if an entry is, 0 for a vector without entries."""
    ends = [end for entry in tensors(x) if entry.numel() for end in torch.aminmax(entry.detach())]
    return float(_stacked(ends).abs().max()) if ends else 0.0


def power_of_two(x: Tensor | Tree, largest: float) -> float:
    """A power of two near the ``largest`` entry of ``x ≠ 0``.

    Division by it is exact. The squares of the divided entries neither underflow nor overflow.
    """
    limits = [torch.finfo(entry.dtype) for entry in tensors(x)]
    # The power and its inverse must be representable in the type of every tensor.
    most = min(math.frexp(limit.max)[1] for limit in limits) - 1
    least = max(math.frexp(limit.tiny)[1] for limit in limits) - 1
    return float(2.0 ** min(max(math.frexp(largest)[1], least), most))


def cosine(x: Tree, y: Tree) -> float:
    """The cosine of the angle between two dicts of tensors.

    NaN if one of them is zero, or if names or shapes differ: parameters were frozen, added or
    loaded with other shapes in between.
    """
    if {n: t.shape for n, t in x.items()} != {n: t.shape for n, t in y.items()}:
        return math.nan
    units = []
    for vector in (x, y):
        largest = max_abs(vector)
        if largest == 0.0:
            return math.nan
        unit = scale(1.0 / power_of_two(vector, largest), vector)
        # A gradient that was loaded may lie on another device, or have another precision.
        unit = {n: unit[n].to(x[n].device, torch.float64) for n in x}
        units.append(scale(1.0 / norm(unit), unit))
    return max(-1.0, min(1.0, dot(*units)))


def _stacked(scalars: list[Tensor]) -> Tensor:
    """One float64 tensor, so that a dict takes one transfer from the device, not one per entry."""
    if len({(s.device, s.dtype) for s in scalars}) > 1:
        scalars = [s.to(scalars[0].device, torch.float64) for s in scalars]
    return torch.stack(scalars).double()


def flatten(x: Tree, out: Tensor | None = None) -> Tensor:
    """All entries of a dict as one vector, on the device of the first tensor.

    Its type is the widest among the tensors, and float32 at least. It is written to ``out`` if that
    is given.
    """
    dtype = functools.reduce(
        torch.promote_types, {entry.dtype for entry in x.values()}, torch.float32
    )
    device = next(iter(x.values())).device
    return torch.cat([entry.reshape(-1).to(device, dtype) for entry in x.values()], out=out)


def unflatten(flat: Tensor, like: Tree) -> Tree:
    """The inverse of :func:`flatten`; views of ``flat`` where type, device and offset allow it."""
    parts = torch.split(flat, [entry.numel() for entry in like.values()])
    found = {}
    for part, (name, entry) in zip(parts, like.items(), strict=True):
        # torch.view_as_complex needs an even storage offset.
        aligned = part.clone() if part.storage_offset() % 2 else part
        found[name] = aligned.view(entry.shape).to(entry.device, entry.dtype)
    return found


class Blocks:
    """How the tensors of a dict lie in one flat vector, found out once for many vectors.

    Args:
        like: the tensors; see :func:`flatten` for the type and the device of the vector.
    """

    def __init__(self, like: Tree) -> None:
        self._like = like
        self._shapes = [entry.shape for entry in like.values()]
        self._sizes = [entry.numel() for entry in like.values()]
        kinds = {(entry.dtype, entry.device) for entry in like.values()}
        self._dtype = next(iter(kinds))[0]
        # Nothing is converted, and every entry begins at an even place.
        self._plain = (
            len(kinds) == 1
            and torch.promote_types(self._dtype, torch.float32) == self._dtype
            and not any(end % 2 for end in itertools.accumulate(self._sizes[:-1]))
        )

    def flatten(self, x: Tree, out: Tensor | None = None) -> Tensor:
        """See :func:`flatten`."""
        if self._plain and all(entry.dtype == self._dtype for entry in x.values()):
            return torch.cat([entry.reshape(-1) for entry in x.values()], out=out)
        return flatten(x, out)

    def unflatten(self, flat: Tensor) -> Tree:
        """See :func:`unflatten`."""
        if not self._plain or flat.dtype != self._dtype or flat.storage_offset() % 2:
            return unflatten(flat, self._like)
        parts = zip(self._like, torch.split(flat, self._sizes), self._shapes, strict=True)
        return {name: part.view(shape) for name, part, shape in parts}


def rounding(x: Tensor | Tree) -> float:
    """The machine epsilon of the least precise tensor."""
    return max(torch.finfo(entry.dtype).eps for entry in tensors(x))
