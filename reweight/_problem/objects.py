"""Python objects that a forward pass may change: lists, dicts, arrays, random generators."""

from __future__ import annotations

import random
import sys
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

# Larger ones hold data, which passes read.
_LARGEST, _LARGEST_ARRAY = 10_000, 1_000_000
_CONTAINERS = (list, dict, set, deque, OrderedDict, defaultdict)
_PLAIN = frozenset((int, float, bool, str, type(None)))
# Loggers, classes, functions and modules hold what the whole process shares, which is not restored.
_SHARED = sys.stdlib_module_names - {"types", "collections", "argparse"}
# What every module has: hooks, parameters, buffers and submodules.
_OF_ALL_MODULES = frozenset(vars(nn.Module())) | {"training"}


class Objects:
    """Saves the contents of mutable objects, and puts them back.

    Of a container the entries are put back, not what is inside of an entry. Containers of more than
    10 000 entries and arrays of more than a million hold data, and stay as they are.

    Args:
        objects: lists, dicts, sets, arrays, random generators, and optimizers for their state.
    """

    def __init__(self, objects: Iterable[Any]) -> None:
        distinct = {id(y): y for x in objects for y in _parts(x)}
        self._saved = [put_back for x in distinct.values() if (put_back := _saved(x)) is not None]

    def restore(self) -> None:
        """Put the contents back."""
        for put_back in self._saved:
            put_back()


def holds_numbers(x: Any) -> bool:
    """Whether an object is an array, a random generator or an optimizer."""
    return isinstance(x, (np.ndarray, Optimizer)) or _is_generator(x)


def is_mutable(x: Any) -> bool:
    """Whether an object is a container, an array or a random generator."""
    return type(x) in _CONTAINERS or isinstance(x, np.ndarray) or _is_generator(x)


def _is_generator(x: Any) -> bool:
    # Not a constant of the module: numpy loads its random part when it is named.
    kinds = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)
    return isinstance(x, kinds)


def _parts(x: Any) -> Iterator[Any]:
    if isinstance(x, Optimizer):
        yield from inside(x.state)
    else:
        yield x


def of_modules(parts: Sequence[nn.Module]) -> Iterator[Any]:
    """The mutable objects among the attributes of modules."""
    for part in parts:
        for name, value in vars(part).items():
            if name not in _OF_ALL_MODULES and type(value) not in _PLAIN:
                yield from inside(value)


def inside(value: Any, depth: int = 3) -> Iterator[Any]:
    """The mutable objects in an object, itself included."""
    if isinstance(value, (Tensor, nn.Module, str)) or not depth:
        return
    if is_mutable(value):
        yield value
    if isinstance(value, dict):
        entries: Iterable[Any] = value.values()
    elif isinstance(value, (list, tuple, deque)):
        entries = value
    elif type(value).__module__.split(".")[0] in _SHARED:
        return
    else:
        entries = getattr(value, "__dict__", {}).values()
    if len(entries) <= _LARGEST:  # type: ignore[arg-type]
        for entry in entries:
            yield from inside(entry, depth - 1)


def _saved(x: Any) -> Callable[[], object] | None:
    """A function that puts the contents of ``x`` back to what they are now."""
    if isinstance(x, np.ndarray):
        if not x.flags.writeable or x.dtype.hasobject or x.size > _LARGEST_ARRAY:
            return None
        values = x.copy()
        return lambda: np.copyto(x, values)
    if isinstance(x, torch.Generator):
        state = x.get_state()
        return lambda: x.set_state(state)
    if isinstance(x, np.random.Generator):
        bits = x.bit_generator.state
        return lambda: setattr(x.bit_generator, "state", bits)
    if isinstance(x, np.random.RandomState):
        numbers = x.get_state()
        return lambda: x.set_state(numbers)
    if isinstance(x, random.Random):
        python = x.getstate()
        return lambda: x.setstate(python)
    if len(x) > _LARGEST:
        return None
    before = x.copy()
    return lambda: _refill(x, before)


def _refill(x: Any, before: Any) -> None:
    """Give a container the entries of another, unless it has them."""
    if len(x) == len(before):
        pairs = zip(x.items(), before.items(), strict=True) if isinstance(x, dict) else None
        if pairs is None and not isinstance(x, set):
            if all(a is b for a, b in zip(x, before, strict=True)):
                return
        elif pairs is not None and all(k is i and v is w for (k, v), (i, w) in pairs):
            return
    x.clear()
    (x.update if isinstance(x, (dict, set)) else x.extend)(before)
