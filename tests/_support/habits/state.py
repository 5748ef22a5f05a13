"""All state that an outer step could change, by value and by identity."""

from __future__ import annotations

import functools
import random
import types
from collections import deque
from collections.abc import Iterator, Mapping, Set
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Record = tuple[Any, ...]
# What is compared by value; it has no parts.
_PLAIN = (int, float, complex, str, bytes, bool, type(None), torch.dtype, torch.device, slice)
# Objects of these modules are not taken apart.
_OPAQUE = ("builtins", "weakref", "_thread", "threading", "reweight.hypergradient")


class State:
    """A record of everything that can be reached from some objects, and of the random state.

    Tensors are compared bit for bit, together with their identity, storage, ``.grad``,
    ``requires_grad`` and number of hooks. Functions are followed into their closures and defaults.
    """

    def __init__(self, roots: Mapping[str, Any]) -> None:
        self._roots = roots
        # The objects are kept, so that no id is used twice.
        self._kept: list[Any] = []
        self._before = self._record()

    def differences(self) -> list[str]:
        """What is no longer as it was, as paths."""
        now = self._record()
        found = []
        for path in self._before.keys() | now.keys():
            if path not in now:
                found.append(f"{path} is gone")
            elif path not in self._before:
                found.append(f"{path} is new")
            elif self._before[path] != now[path]:
                names = _changed(self._before[path], now[path])
                found.append(f"{path} has another {names}")
        return sorted(found)

    def _record(self) -> dict[str, Record]:
        found: dict[str, Record] = {
            "torch's random state": ("value", _bits(torch.get_rng_state())),
            "numpy's random state": ("value", str(np.random.get_state())),
            "Python's random state": ("value", random.getstate()),
            "grad mode": ("value", torch.is_grad_enabled()),
            "default dtype": ("value", torch.get_default_dtype()),
        }
        seen: set[int] = set()
        waiting = list(self._roots.items())
        while waiting:
            path, value = waiting.pop()
            if id(value) in seen and not isinstance(value, _PLAIN):
                found[path] = ("object", id(value))
                continue
            seen.add(id(value))
            self._kept.append(value)
            found[path] = _own(value)
            waiting += [(f"{path}{step}", part) for step, part in _parts(value)]
        return found


def _changed(before: Record, now: Record) -> str:
    was, is_now = (dict(zip(r[::2], r[1::2], strict=True)) for r in (before, now))
    return ", ".join(sorted(name for name in was | is_now if was.get(name) != is_now.get(name)))


def _bits(x: Tensor) -> Any:
    """The values of a tensor, bit for bit, in any layout."""
    x = x.detach()
    if isinstance(x, nn.parameter.UninitializedTensorMixin):
        return "uninitialized"
    if x.is_nested:
        return tuple(map(_bits, x.unbind()))
    if x.layout is torch.sparse_coo:
        return str(x.layout), _bits(x._indices()), _bits(x._values())
    if x.layout in (torch.sparse_csr, torch.sparse_bsr):
        return str(x.layout), *map(_bits, (x.crow_indices(), x.col_indices(), x.values()))
    if x.layout in (torch.sparse_csc, torch.sparse_bsc):
        return str(x.layout), *map(_bits, (x.ccol_indices(), x.row_indices(), x.values()))
    with torch.inference_mode(False):
        flat = x.as_subclass(Tensor).clone().contiguous().reshape(-1)
        return x.dtype, tuple(x.shape), flat.view(torch.uint8).numpy().tobytes()


def _own(value: Any) -> Record:
    """What belongs to the value itself and not to its parts."""
    if isinstance(value, _PLAIN):
        return ("value", repr(value))
    if isinstance(value, Tensor):
        storage = 0
        if value.layout is torch.strided and not value.is_nested:
            lazy = isinstance(value, nn.parameter.UninitializedTensorMixin)
            storage = 0 if lazy else value.data_ptr()
        hooks = len(value._backward_hooks or ()), len(value._post_accumulate_grad_hooks or ())
        # The node itself: Python makes a new object for it, with another id, if none is kept.
        grad_fn = None if value.is_leaf else value.grad_fn
        grad = value.grad if value.is_leaf else None
        return (
            *("object", id(value), "value", _bits(value), "storage", storage),
            *("requires_grad", value.requires_grad, "hooks", hooks, "graph", grad_fn),
            *("grad", None if grad is None else (id(grad), _bits(grad))),
        )
    if isinstance(value, np.ndarray):
        return ("object", id(value), "value", (value.dtype, value.shape, value.tobytes()))
    if isinstance(value, torch.Generator):
        return ("object", id(value), "value", _bits(value.get_state()))
    if isinstance(value, np.random.Generator):
        return ("object", id(value), "value", str(value.bit_generator.state))
    if isinstance(value, random.Random):
        return ("object", id(value), "value", value.getstate())
    return ("object", id(value))


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """What a value is made of."""
    whole = (Tensor, np.ndarray, torch.Generator, np.random.Generator, random.Random)
    if isinstance(value, (*_PLAIN, *whole, type, types.ModuleType)):
        return
    if getattr(type(value), "unwatched", False):
        return
    if isinstance(value, types.FunctionType):
        names = value.__code__.co_freevars
        for name, cell in zip(names, value.__closure__ or (), strict=True):
            try:
                yield f".{name}", cell.cell_contents
            except ValueError:  # the variable has no value yet
                continue
        for i, default in enumerate(value.__defaults__ or ()):
            yield f".default[{i}]", default
        return
    if isinstance(value, types.MethodType):
        yield ".self", value.__self__
        return
    if isinstance(value, functools.partial):
        yield ".func", value.func
        yield ".args", value.args
        yield ".keywords", value.keywords
        return
    # Another mapping may compute what it gives; its attributes are followed below.
    if isinstance(value, (dict, types.MappingProxyType)):
        for key in value:
            yield f"[{key!r}]" if isinstance(key, str) else f"[{id(key)}]", value[key]
    elif isinstance(value, (list, tuple, deque)):
        for i, entry in enumerate(value):
            yield f"[{i}]", entry
    elif isinstance(value, Set):
        for entry in value:
            yield f"{{{id(entry)}}}", entry
    if type(value).__module__ in _OPAQUE:
        return
    for name, entry in getattr(value, "__dict__", {}).items():
        yield f".{name}", entry
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                yield f".{name}", getattr(value, name)
