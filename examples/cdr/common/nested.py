"""Tensors inside dataclasses, tuples, lists and mappings."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor

Nested = TypeVar("Nested")


def map_tensors(function: Callable[[Tensor], Tensor], value: Nested) -> Nested:
    """Apply a function to every tensor of a nested value; keep everything else as it is."""
    mapped: Any = value
    if isinstance(value, Tensor):
        mapped = function(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        mapped = dataclasses.replace(value, **map_tensors(function, fields))
    elif isinstance(value, tuple):
        entries = [map_tensors(function, entry) for entry in value]
        mapped = type(value)(*entries) if hasattr(value, "_fields") else type(value)(entries)
    elif isinstance(value, list):
        mapped = [map_tensors(function, entry) for entry in value]
    elif isinstance(value, Mapping):
        mapped = {key: map_tensors(function, entry) for key, entry in value.items()}
        if isinstance(value, dict):
            # A copy keeps the type and the attributes, such as the versions in a state dict.
            copied = copy.copy(value)
            copied.update(mapped)
            mapped = copied
    result: Nested = mapped
    return result


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors of a nested value, in the order in which :func:`map_tensors` meets them."""
    return [entry for entry in flattened(value) if isinstance(entry, Tensor)]


def with_tensors(value: Nested, tensors: Sequence[Tensor]) -> Nested:
    """The nested value with other tensors: the inverse of :func:`tensors_in`."""
    remaining = iter(tensors)
    return map_tensors(lambda _: next(remaining), value)


def flattened(value: Any) -> list[Any]:
    """The tensors of a nested value, with a description of its structure between them.

    Two values have the same structure if their lists agree in all that is not a tensor.
    """
    if isinstance(value, Tensor):
        return [value]
    kind: Any
    children: Iterable[Any]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = type(value)
        children = [getattr(value, field.name) for field in dataclasses.fields(value)]
    elif isinstance(value, (tuple, list)):
        kind, children = (type(value), len(value)), value
    elif isinstance(value, Mapping):
        kind, children = (type(value), *value), value.values()
    else:
        return [value]
    flat = [kind]
    for child in children:
        flat += flattened(child)
    return flat
