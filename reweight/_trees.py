"""Vectors in parameter space: one tensor, or a dict of named tensors.

Everything a linear solver needs, and nothing that knows about models. A dict stays a dict, so the
names of the parameters survive from the model to the error message.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections import UserDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

Tree = dict[str, Tensor]
# Entries summed in their own type before float64 takes over.
_BLOCK = 4096
# Norms whose squares, and those of all entries that count, float32 can hold.
_SQUARES_FIT = (1e-12, 1e15)
Vector = TypeVar("Vector", Tensor, Tree)


def leaves(x: Tensor | Tree) -> list[Tensor]:
    """The tensors of ``x``, in its own order."""
    return [x] if isinstance(x, Tensor) else list(x.values())


def tree_map(fn: Callable[..., Tensor], x: Vector, *rest: Vector) -> Vector:
    """Apply ``fn`` leaf by leaf; every further argument has the keys of the first."""
    if isinstance(x, Tensor):
        return fn(x, *rest)
    return {name: fn(leaf, *(other[name] for other in rest)) for name, leaf in x.items()}


def zeros_like(x: Vector) -> Vector:
    """A zero vector shaped like ``x``."""
    return tree_map(torch.zeros_like, x)


def filled(grads: Iterable[Tensor | None], like: Tree) -> Tree:
    """Gradients by the names of ``like``: dense, and zero where there is no path."""
    return {
        name: torch.zeros_like(x) if g is None else dense(g)
        for (name, x), g in zip(like.items(), grads, strict=True)
    }


def dense(x: Tensor) -> Tensor:
    """The same tensor, with its zeros."""
    return x.to_dense() if x.is_sparse else x


def stored(x: Tree) -> Tree:
    """The entries that sparse tensors hold, and dense ones as they are."""
    return {name: leaf._values() if leaf.is_sparse else leaf for name, leaf in x.items()}


def axpy(a: float, x: Vector, y: Vector) -> Vector:
    """``a·x + y``, out of place."""
    return tree_map(lambda u, v: torch.add(v, u, alpha=a), x, y)


def scale(a: float, x: Vector) -> Vector:
    """``a·x``, out of place."""
    return tree_map(lambda u: u * a, x)


def dot(x: Tensor | Tree, y: Tensor | Tree) -> float:
    """The Euclidean inner product, summed over all leaves."""
    pairs = zip(leaves(x), leaves(y), strict=True)
    products = [torch.dot(a.reshape(-1), b.reshape(-1)) for a, b in pairs]
    return float(_gather(products).sum())


def norm(x: Tensor | Tree) -> float:
    """The Euclidean norm over all leaves, as if squares were summed in float64."""
    if isinstance(x, Tensor):
        size = float(_norm(x))
    else:
        size = float(torch.linalg.vector_norm(_gather([_norm(leaf) for leaf in leaves(x)])))
    if _SQUARES_FIT[0] < size < _SQUARES_FIT[1]:
        return size
    norms = [torch.linalg.vector_norm(leaf, dtype=torch.float64) for leaf in leaves(x)]
    return float(torch.linalg.vector_norm(_gather(norms)))


def _norm(x: Tensor) -> Tensor:
    """The norm of one tensor: float32 within blocks, where it is as good, and a third of the price.

    A sum of as many squares as a block has is exact to seven digits, and of the sums' errors hardly
    anything is left in the total.
    """
    if x.dtype != torch.float32 or x.numel() < 2 * _BLOCK or not x.is_contiguous():
        size: Tensor = torch.linalg.vector_norm(x, dtype=torch.float64)
        return size
    flat = x.detach().view(-1)
    whole = flat.numel() // _BLOCK * _BLOCK
    blocks = torch.linalg.vector_norm(flat[:whole].view(-1, _BLOCK), dim=1).double()
    rest = torch.linalg.vector_norm(flat[whole:], dtype=torch.float64)
    return _norm(torch.cat([blocks, rest.view(1)]))


def max_abs(x: Tensor | Tree) -> float:
    """The largest absolute entry; ``nan`` if there is one, 0 for a vector without entries."""
    ends = [end for leaf in leaves(x) if leaf.numel() for end in torch.aminmax(leaf.detach())]
    return float(_gather(ends).abs().max()) if ends else 0.0


def power_of_two(x: Tensor | Tree, largest: float) -> float:
    """A power of two near the ``largest`` entry of ``x ≠ 0``.

    Dividing by it is exact, and leaves entries whose squares neither underflow nor overflow.
    """
    limits = [torch.finfo(leaf.dtype) for leaf in leaves(x)]
    # It and its inverse must be numbers of every leaf's type, be the entry denormal or the largest.
    most = min(math.frexp(limit.max)[1] for limit in limits) - 1
    least = max(math.frexp(limit.tiny)[1] for limit in limits) - 1
    return float(2.0 ** min(max(math.frexp(largest)[1], least), most))


def cosine(x: Tree, y: Tree) -> float:
    """Of the angle between two dicts of tensors.

    NaN if one of them is zero, or if they are not made alike: parameters were frozen, added or
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


def _gather(scalars: list[Tensor]) -> Tensor:
    """One float64 tensor, so that a tree costs one transfer from the device and not one a leaf."""
    if len({(s.device, s.dtype) for s in scalars}) > 1:
        scalars = [s.to(scalars[0].device, torch.float64) for s in scalars]
    return torch.stack(scalars).double()


def flatten(x: Tree, out: Tensor | None = None) -> Tensor:
    """All entries of a dict as one vector, on the device of its first leaf.

    Of the widest type among the leaves, and of single precision at least; in ``out`` if that is
    given, else in memory of its own.
    """
    dtype = functools.reduce(
        torch.promote_types, {leaf.dtype for leaf in x.values()}, torch.float32
    )
    device = next(iter(x.values())).device
    return torch.cat([leaf.reshape(-1).to(device, dtype) for leaf in x.values()], out=out)


def unflatten(flat: Tensor, like: Tree) -> Tree:
    """The inverse of :func:`flatten`; views of ``flat`` where type, device and place allow it."""
    parts = torch.split(flat, [leaf.numel() for leaf in like.values()])
    return {
        name: _placed(part).view(leaf.shape).to(leaf.device, leaf.dtype)
        for part, (name, leaf) in zip(parts, like.items(), strict=True)
    }


def _placed(x: Tensor) -> Tensor:
    """``x``, at an even place in memory: elsewhere it can't be seen as complex numbers."""
    return x.clone() if x.storage_offset() % 2 else x


def rounding(x: Tensor | Tree) -> float:
    """The relative rounding error of the least precise leaf."""
    return max(torch.finfo(leaf.dtype).eps for leaf in leaves(x))


def doubled(x: Tensor) -> Tensor:
    """``x`` in double precision, if it is real and floating-point."""
    return x.double() if x.is_floating_point() else x


def map_tensors(fn: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Apply ``fn`` to every tensor inside nested tuples, lists, mappings and dataclasses.

    Anything else is passed through as it is.
    """
    if isinstance(value, Tensor):
        return fn(value)
    if isinstance(value, tuple):
        entries = [map_tensors(fn, entry) for entry in value]
        return type(value)(*entries) if hasattr(value, "_fields") else type(value)(entries)
    if isinstance(value, list):
        return [map_tensors(fn, entry) for entry in value]
    if isinstance(value, Mapping):
        mapped = {key: map_tensors(fn, entry) for key, entry in value.items()}
        return mapped if type(value) is dict else _like(value, mapped)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = copy.copy(value)
        for field in dataclasses.fields(value):
            if not hasattr(value, field.name):
                continue  # made by __post_init__ or later
            entry = map_tensors(fn, getattr(value, field.name))
            object.__setattr__(changed, field.name, entry)  # frozen ones too
        return changed
    return value


def _like(value: Mapping[Any, Any], mapped: dict[Any, Any]) -> Any:
    """The entries in a mapping of the same type, if that can be made without touching ``value``."""
    if isinstance(value, (dict, UserDict)):
        copied: Any = copy.copy(value)
        copied.update(mapped)
        return copied
    try:
        return type(value)(mapped)  # type: ignore[call-arg]
    except TypeError:
        return mapped
