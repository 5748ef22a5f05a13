"""Short descriptions of tensors, for ``print``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

# Entries of a container that are named.
_NAMED = 5


def described(value: Any) -> str:
    """The structure of nested containers, with shapes in the place of tensors."""
    if isinstance(value, Tensor):
        return str(list(value.shape))
    if isinstance(value, Mapping):
        return f"{{{_joined({str(key): entry for key, entry in value.items()})}}}"
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return f"{type(value).__name__}({_joined(value._asdict(), '=')})"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)
        }
        return f"{type(value).__name__}({_joined(fields, '=')})"
    if isinstance(value, (tuple, list)):
        parts = [described(entry) for entry in value[:_NAMED]]
        return f"({', '.join(parts + ['...'] * (len(value) > _NAMED))})"
    if value is None or isinstance(value, (bool, int, float)):
        return str(value)
    return type(value).__name__


def _joined(entries: Mapping[str, Any], sign: str = ": ") -> str:
    parts = [f"{key}{sign}{described(entry)}" for key, entry in list(entries.items())[:_NAMED]]
    return ", ".join(parts + ["..."] * (len(entries) > _NAMED))


def spread(x: Tensor) -> str:
    """``"mean 1.05, from 0.1 to 2"``; for one number that number, ``""`` where none can be read."""
    try:
        low, high = (float(end) for end in x.detach().aminmax())
        if x.numel() == 1:
            return f"{low:.3g}"
        return f"mean {float(x.detach().mean()):.3g}, from {low:.3g} to {high:.3g}"
    except RuntimeError:  # no entries, no storage, or inside of torch.func
        return ""


def counted(count: int, noun: str) -> str:
    """``"1 sample"``, ``"2 samples"``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
