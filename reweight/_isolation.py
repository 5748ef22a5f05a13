"""Forward passes that leave no trace.

The outer step runs the user's model several times on the side. Whatever those passes change
(BatchNorm statistics, the random state, parameters swapped in for a differentiation) is put back,
after an exception too.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from operator import eq, is_
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

_RandomState = tuple[Tensor, tuple[Any, ...], Any, list[Tensor]]


class Isolation:
    """Remembers what a forward pass may change.

    The buffers and the reassigned attributes of some modules (``training``, a cached attention
    map), and the random state of some devices. While it is open the modules see copies of their
    buffers, new ones after every :meth:`restore`: a graph that was made in between and saved one
    finds in it what it saved, whatever the next pass writes.
    """

    def __init__(self, modules: tuple[nn.Module, ...], devices: set[torch.device]) -> None:
        self._modules = [
            (module, dict(vars(module)), dict(module._buffers))
            for root in modules
            for module in root.modules()
        ]
        self._values = {
            id(buffer): (buffer, buffer.clone())
            for _, _, buffers in self._modules
            for buffer in buffers.values()
            if buffer is not None
        }
        self._cuda = sorted(d.index or 0 for d in devices if d.type == "cuda")
        self._start = self._outside = self._random_state()
        self._copy_buffers()

    def restore(self) -> None:
        """Make the next pass find what the first one found."""
        self.rewind()
        for module, attributes, _ in self._modules:
            _put_back(vars(module), attributes)
        self._copy_buffers()

    def close(self) -> None:
        """Put everything back."""
        self._set_random_state(self._outside)
        for module, attributes, buffers in self._modules:
            _put_back(vars(module), attributes)
            _put_back(module._buffers, buffers)
        for buffer, value in self._values.values():
            # Written to by another way than the module's own name for it.
            if not _same(buffer, value):
                buffer.data.copy_(value)

    def rewind(self) -> None:
        """Put back the random state only, so that the next pass draws what this one drew."""
        self._set_random_state(self._start)

    @contextmanager
    def outside(self) -> Iterator[None]:
        """Go on with the random state of before, and keep what is drawn from it."""
        inside = self._random_state()
        self._set_random_state(self._outside)
        try:
            yield
        finally:
            self._outside = self._random_state()
            self._set_random_state(inside)

    def _copy_buffers(self) -> None:
        copies = {key: value.clone() for key, (_, value) in self._values.items()}
        for module, _, buffers in self._modules:
            module._buffers.clear()
            module._buffers.update(
                {name: None if b is None else copies[id(b)] for name, b in buffers.items()}
            )

    def _random_state(self) -> _RandomState:
        return (
            torch.get_rng_state(),
            random.getstate(),
            np.random.get_state(),
            [torch.cuda.get_rng_state(index) for index in self._cuda],
        )

    def _set_random_state(self, state: _RandomState) -> None:
        torch_state, python_state, numpy_state, cuda_states = state
        torch.set_rng_state(torch_state)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        for index, cuda_state in zip(self._cuda, cuda_states, strict=True):
            torch.cuda.set_rng_state(cuda_state, index)


def _same(x: Tensor, y: Tensor) -> bool:
    return bool(((x == y) | ((x != x) & (y != y))).all())


def _put_back(slots: dict[str, Any], before: dict[str, Any]) -> None:
    """Give ``slots`` the entries that it had ``before``; untouched if it has them."""
    same = len(slots) == len(before) and all(map(is_, slots.values(), before.values()))
    if not (same and all(map(eq, slots, before))):
        slots.clear()
        slots.update(before)


@contextmanager
def isolated(modules: tuple[nn.Module, ...], devices: set[torch.device]) -> Iterator[Isolation]:
    """Gradients on, autocast off, and no trace left behind."""
    with ExitStack() as stack:
        # First, for the copies of the buffers to be tensors like any other.
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(_plain_gradients(modules))
        isolation = Isolation(modules, devices)
        stack.callback(isolation.close)
        stack.enter_context(torch.enable_grad())
        for kind in {device.type for device in devices}:
            # Half-precision products carry errors of a percent: too many for a linear solver.
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield isolation


@contextmanager
def _plain_gradients(modules: tuple[nn.Module, ...]) -> Iterator[None]:
    """Gradients as they are: dense, and not rewritten by hooks such as clipping.

    Hooks change the step that an optimizer takes, not the loss it descends. A sparse gradient has
    no second derivative, a dense one has the same values.
    """
    parts = [part for root in modules for part in root.modules()]
    kept: list[tuple[object, str, Any]] = []
    try:
        for part in parts:
            changes: dict[str, Any] = {
                name: OrderedDict()
                for name in ("_backward_hooks", "_backward_pre_hooks")
                if vars(part).get(name)
            }
            if isinstance(part, (nn.Embedding, nn.EmbeddingBag)) and part.sparse:
                changes["sparse"] = False
            for name, value in changes.items():
                kept.append((part, name, vars(part)[name]))
                setattr(part, name, value)
            for parameter in part._parameters.values():
                if parameter is not None and parameter._backward_hooks:
                    kept.append((parameter, "_backward_hooks", parameter._backward_hooks))
                    parameter._backward_hooks = None
        yield
    finally:
        for owner, name, value in reversed(kept):
            setattr(owner, name, value)


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Attention by its plain formula: the fused kernels have no second derivative."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


def is_compiled(model: nn.Module) -> bool:
    """Whether a part of it was given to ``torch.compile``."""
    return any(
        hasattr(module, "_orig_mod") or module._compiled_call_impl is not None
        for module in model.modules()
    )


@contextmanager
def swapped(
    module: nn.Module,
    tensors: Mapping[int, Tensor],
    buffers: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[None]:
    """Run with other tensors in the place of parameters, given by the parameter's ``id``.

    By identity rather than by name: a parameter, or a whole submodule, that is reachable by several
    names is replaced everywhere and put back everywhere. (``torch.func.functional_call`` loses the
    parameters of a submodule that has two names.) With ``buffers``, the module sees what that makes
    of its buffers: copies, which in-place updates inside ``torch.func`` need, or another type.
    """
    undo: list[tuple[dict[str, Tensor | None], str, Tensor]] = []
    try:
        for part in module.modules():
            for name, parameter in part._parameters.items():
                if parameter is not None and id(parameter) in tensors:
                    undo.append((part._parameters, name, parameter))  # type: ignore[arg-type]
            if buffers is not None:
                for name, buffer in part._buffers.items():
                    if buffer is not None:
                        undo.append((part._buffers, name, buffer))
        for slots, name, tensor in undo:
            if id(tensor) in tensors:
                slots[name] = tensors[id(tensor)]
            elif buffers is not None:
                slots[name] = buffers(tensor)
        yield
    finally:
        for slots, name, tensor in undo:
            slots[name] = tensor
