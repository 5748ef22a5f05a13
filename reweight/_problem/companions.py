"""Modules that a user's functions refer to besides the model: a criterion, a second encoder."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import nn

# How far references are followed: a function, what it is bound to, the list that this holds.
_DEPTH = 4
# Longer lists and dicts hold data.
_LONGEST = 1000


def companions(
    functions: Iterable[Callable[..., Any] | None], known: Iterable[nn.Module]
) -> dict[str, nn.Module]:
    """The modules that functions refer to, by the name that they have there.

    A function refers to what it is bound to, and to its closure, defaults and global names. Parts
    of ``known`` modules are left out.
    """
    inside = {id(part) for module in known for part in module.modules()}
    found: dict[str, nn.Module] = {}
    for name, module in _referred(functions, nn.Module):
        if id(module) not in inside:
            label = name or type(module).__name__
            while label in found:
                label += "_"
            found[label] = module
            inside |= {id(part) for part in module.modules()}
    return found


def refers_to(function: Callable[..., Any], kind: type) -> bool:
    """Whether a function refers to an object of some kind."""
    return any(True for _ in _referred([function], kind))


def _referred(functions: Iterable[Any], kind: type) -> Iterator[tuple[str, Any]]:
    """The objects of a kind that functions refer to, each once, near ones first."""
    seen: set[int] = set()
    waiting = [("", function, _DEPTH) for function in functions if function is not None]
    for name, value, depth in waiting:
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, kind):
            yield name, value
        elif depth and not isinstance(value, nn.Module):
            waiting += [(label, entry, depth - 1) for label, entry in _references(name, value)]


def _references(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, types.MethodType):
        yield "", value.__self__
        yield "", value.__func__
    elif isinstance(value, functools.partial):
        yield "", value.func
        yield from ((name, entry) for entry in value.args)
        yield from value.keywords.items()
    elif isinstance(value, types.FunctionType):
        yield from _of_function(value)
    elif isinstance(value, dict):
        if len(value) <= _LONGEST:
            yield from ((f"{name}.{key}".strip("."), entry) for key, entry in value.items())
    elif isinstance(value, (list, tuple)):
        if len(value) <= _LONGEST:
            yield from ((f"{name}.{index}".strip("."), entry) for index, entry in enumerate(value))
    elif not isinstance(value, (type, types.ModuleType)) and _by_the_user(type(value)):
        # An object that owns the function or is called in its place. Only its own entries are
        # read: a property would compute something.
        yield from getattr(value, "__dict__", {}).items()
        yield "", vars(type(value)).get("__call__")


def _by_the_user(thing: Any) -> bool:
    """Whether a function or a class is not one of the libraries that refer to half the world."""
    return (thing.__module__ or "").split(".")[0] not in ("builtins", "torch", "numpy", "functools")


def _of_function(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    if not _by_the_user(function):
        return
    codes = [function.__code__]
    for code in codes:
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
        for name in code.co_names:
            if name in function.__globals__:
                value = function.__globals__[name]
                if isinstance(value, (nn.Module, types.FunctionType, list, tuple, dict)):
                    yield name, value
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:
            continue  # not assigned yet
    for value in function.__defaults__ or ():
        yield "", value
    yield from (function.__kwdefaults__ or {}).items()
    if hasattr(function, "__wrapped__"):
        yield "", function.__wrapped__
