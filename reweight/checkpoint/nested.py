"""A nested state as text, and the tensors in it by name."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Path = tuple[Any, ...]


class Described:
    """A state taken apart.

    Args:
        state: tensors, numbers, strings, True, False and None, in any nesting of dicts, lists and
            tuples.

    Attributes:
        text: everything but the values of the tensors, as JSON.
        tensors: by a name that ``text`` has in their place.
        paths: of each tensor, by name: the keys and indices that lead to it.

    Raises:
        TypeError: there is something else in it.
    """

    def __init__(self, state: Any) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.paths: dict[str, Path] = {}
        self.text = json.dumps(self._described(state, ()), allow_nan=False)

    def _described(self, value: Any, path: Path) -> Any:
        if isinstance(value, Tensor):
            return {"tensor": self._named(value, path)}
        if isinstance(value, Mapping):
            pairs = [[_scalar(k, path), self._described(v, (*path, k))] for k, v in value.items()]
            return {"dict": pairs}
        # Not a named tuple, which would come back as another type.
        if isinstance(value, list) or type(value) in (tuple, torch.Size):
            kind = "list" if isinstance(value, list) else "tuple"
            return {kind: [self._described(entry, (*path, i)) for i, entry in enumerate(value)]}
        return _scalar(value, path)

    def _named(self, tensor: Tensor, path: Path) -> str:
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
            raise TypeError(
                f"state{_shown(path)} is a tensor of {tensor.layout} on {tensor.device}; a "
                "checkpoint holds plain ones: save tensor.to_dense(), or its parts"
            )
        # Numbered, since paths of different keys can look alike.
        name = f"{len(self.tensors)} {'/'.join(map(str, path))}"
        self.tensors[name], self.paths[name] = tensor.detach(), path
        return name


def tensors_by_path(state: Any) -> dict[Path, Tensor]:
    """The tensors of a nested state, whatever else is in it."""
    if isinstance(state, Tensor):
        return {(): state}
    entries: Any = ()
    if isinstance(state, Mapping):
        entries = state.items()
    elif isinstance(state, (list, tuple)):
        entries = enumerate(state)
    return {(k, *path): t for k, v in entries for path, t in tensors_by_path(v).items()}


def names(text: str) -> dict[str, Path]:
    """The names of the tensors in a description, and the path of each."""
    found: dict[str, Path] = {}

    def visit(value: Any, path: Path) -> None:
        if isinstance(value, dict):
            ((kind, content),) = value.items()
            if kind == "tensor":
                found[content] = path
            elif kind == "dict":
                for key, entry in content:
                    visit(entry, (*path, _number(key)))
            elif kind != "float":
                for place, entry in enumerate(content):
                    visit(entry, (*path, place))

    visit(json.loads(text), ())
    return found


def restored(text: str, tensors: Mapping[str, Tensor]) -> Any:
    """The state of a description, with these tensors."""

    def build(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        ((kind, content),) = value.items()
        if kind == "tensor":
            return tensors[content]
        if kind == "float":
            return float(content)
        if kind == "dict":
            return {_number(key): build(entry) for key, entry in content}
        entries = [build(entry) for entry in content]
        return entries if kind == "list" else tuple(entries)

    return build(json.loads(text))


def _scalar(value: Any, path: Path) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(float(value))}  # JSON has no name for it
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(
        f"state{_shown(path)} is or has as a key a {type(value).__name__}: a checkpoint holds "
        "tensors, numbers, strings, True, False and None, in dicts, lists and tuples. Make it one "
        "of them, as torch.from_numpy(array) or vars(options)"
    )


def _number(value: Any) -> Any:
    return float(value["float"]) if isinstance(value, dict) else value


def _shown(path: Path) -> str:
    return "".join(f"[{key!r}]" for key in path)
