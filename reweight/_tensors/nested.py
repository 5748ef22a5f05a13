"""Tensors inside nested containers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from reweight._tensors.containers import ATOMS, layout_of
from reweight._tensors.reached import Reached

_DEEPEST = 50  # the recursion ends here; what is nested deeper is walked through without any
_OTHER = object()  # stands for a value that is more than tuples, lists and dicts


def doubled(x: Tensor) -> Tensor:
    """``x`` in float64 or complex128, in its own layout. Other types stay as they are."""
    if x.is_floating_point():
        return x.double()
    return x.to(torch.complex128) if x.is_complex() else x


def map_tensors(
    fn: Callable[[Tensor], Tensor], value: Any, uncopied: list[Any] | None = None
) -> Any:
    """Apply ``fn`` to every tensor inside a value of any structure.

    Tensors are found among the items of tuples, lists and other collections, the values of
    mappings, the attributes of any object, and in whatever lies inside these. Functions, classes,
    modules, optimizers and numpy arrays are passed through as they are, whatever they hold. All
    that can be reached in this way is visited at each call.

    Args:
        fn: is called once for each tensor, however often the value holds it.
        value: is only read.
        uncopied: takes the objects that hold tensors and can't be copied: they own a resource, or
            a base class that is written in C refuses. The result holds the objects themselves.

    Returns:
        The value, of the same classes, with the mapped tensors. What is shared, or holds itself,
        does so in the result. What holds no tensor that ``fn`` changes is not copied.
    """
    if isinstance(value, Tensor):
        return fn(value)
    done: dict[int, Any] = {}
    mapped = _plain(fn, value, done)
    if mapped is not _OTHER:
        return mapped
    reached = Reached(value)
    others = {k: done[k] if k in done else fn(x) for k, x in reached.tensors.items()}
    others = {k: x for k, x in others.items() if x is not reached.tensors[k]}
    return reached.with_others(others, [] if uncopied is None else uncopied)


def tensors_in(value: Any) -> list[Tensor]:
    """Every tensor that :func:`map_tensors` finds in a value, each once. The value is only read."""
    return list(Reached(value).tensors.values())


def _plain(fn: Callable[[Tensor], Tensor], value: Any, done: dict[int, Any], depth: int = 0) -> Any:
    """The quick way, for what is only tuples, lists and dicts, each of them met once.

    Returns ``_OTHER`` for anything else. ``done`` then has the tensors that were mapped, by the ids
    of their originals.
    """
    cls: Any = type(value)
    if cls is dict:
        entries = value.values()
    elif cls is tuple or cls is list:
        entries = value
    else:
        layout = layout_of(cls)
        if layout is None:
            return value
        if not layout.is_bare_tuple:
            return _OTHER
        entries = tuple.__iter__(value)
    if depth > _DEEPEST:
        return _OTHER
    changed = False
    mapped = []
    for entry in entries:
        kind = type(entry)
        if kind is not Tensor and kind in ATOMS:
            new = entry
        elif kind is Tensor or issubclass(kind, Tensor):
            key = id(entry)
            if key in done:
                new = done[key]
            else:
                done[key] = new = fn(entry)
        elif id(entry) in done:
            return _OTHER
        else:
            done[id(entry)] = _OTHER
            new = _plain(fn, entry, done, depth + 1)
            if new is _OTHER:
                return _OTHER
        if new is not entry:
            changed = True
        mapped.append(new)
    if not changed:
        return value
    if cls is list:
        return mapped
    if cls is dict:
        return dict(zip(value, mapped, strict=True))
    try:
        return tuple.__new__(cls, mapped)
    except TypeError:
        return _OTHER
