"""Tensors inside nested containers."""

from __future__ import annotations

import copy
import dataclasses
from collections import UserDict
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor


def doubled(x: Tensor) -> Tensor:
    """``x`` in float64, if it is real and floating-point."""
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
                continue  # __post_init__ or later code sets it
            entry = map_tensors(fn, getattr(value, field.name))
            object.__setattr__(changed, field.name, entry)  # works for frozen dataclasses too
        return changed
    return value


def _like(value: Mapping[Any, Any], mapped: dict[Any, Any]) -> Any:
    """The entries in a mapping of the same type, if one can be made without a change to ``value``.

    Otherwise, in a dict.
    """
    if isinstance(value, (dict, UserDict)):
        copied: Any = copy.copy(value)
        copied.update(mapped)
        return copied
    try:
        return type(value)(mapped)  # type: ignore[call-arg]
    except TypeError:
        return mapped


def tensors_in(value: Any) -> list[Tensor]:
    """Every tensor inside nested containers."""
    found: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        found.append(x)
        return x

    map_tensors(keep, value)
    return found
