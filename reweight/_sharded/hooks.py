"""The forward hooks by which an engine gathers and spreads tensors, taken off for some time."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from reweight._sharded.kinds import is_from


@contextmanager
def without_hooks(parts: Iterable[nn.Module], packages: tuple[str, ...]) -> Iterator[None]:
    """Run without the forward hooks, and the wrapped methods, that some packages registered.

    Hooks of others stay, and all hooks are back in their order afterwards.
    """
    with ExitStack() as stack:
        for part in parts:
            for hooks in (part._forward_pre_hooks, part._forward_hooks):
                theirs = [key for key, hook in hooks.items() if is_from(hook, packages)]
                if theirs:
                    stack.callback(_put_back, hooks, dict(hooks), set(theirs))
                    for key in theirs:
                        del hooks[key]
            # register_fsdp_forward_method wraps a method of the instance.
            slots = vars(part)
            for name, value in list(slots.items()):
                inner = getattr(value, "__wrapped__", None)
                if inner is not None and is_from(value, packages):
                    stack.callback(functools.partial(slots.__setitem__, name, value))
                    slots[name] = inner
        yield


def _put_back(hooks: dict[int, Any], before: dict[int, Any], taken: set[int]) -> None:
    """Give the hooks that were taken their places, among those that the user kept or added."""
    now = dict(hooks)
    hooks.clear()
    hooks.update({k: hook for k, hook in before.items() if k in taken or k in now})
    hooks.update(now)
