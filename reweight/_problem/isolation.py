"""Forward passes without side effects.

An outer step evaluates the user's model several times. Whatever those passes change (BatchNorm
statistics, attributes, the random state) is put back, after an exception too.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from operator import eq, is_
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

_RandomState = tuple[Tensor, tuple[Any, ...], Any, list[Tensor]]


class Isolation:
    """Saves the state that a forward pass may change, and restores it.

    The state is the buffers and the attributes of some modules (``training``, a cached attention
    map), and the random state of some devices. Until :meth:`close` the modules use copies of their
    buffers, and new copies after every :meth:`restore`. So a graph that saved a buffer keeps its
    values, whatever the next pass writes.
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
        self._install_copies()

    def restore(self, *, copies: bool = True) -> None:
        """Let the next pass start from the saved state.

        Args:
            copies: whether to make new copies of the buffers. Not inside a transform of
                ``torch.func``, whose tensors must not stay in a module: see :meth:`saved`.
        """
        self.rewind()
        for module, attributes, _ in self._modules:
            _put_back(vars(module), attributes)
        if copies:
            self._copy_buffers()
        self._install_copies()

    def saved(self, buffer: Tensor) -> Tensor:
        """A new tensor with the saved value of a buffer that a module uses now."""
        return self._saved.get(id(buffer), buffer).clone()

    def close(self) -> None:
        """Put everything back."""
        self._set_random_state(self._outside)
        for module, attributes, buffers in self._modules:
            _put_back(vars(module), attributes)
            _put_back(module._buffers, buffers)
        for buffer, value in self._values.values():
            # The forward pass may have written to the buffer by another name.
            if not _same(buffer, value):
                buffer.data.copy_(value)

    def rewind(self) -> None:
        """Restore the random state only, so that the next pass draws the same numbers."""
        self._set_random_state(self._start)

    @contextmanager
    def outside(self) -> Iterator[None]:
        """Use the user's random state while the context is open, and keep its progress."""
        inside = self._random_state()
        self._set_random_state(self._outside)
        try:
            yield
        finally:
            self._outside = self._random_state()
            self._set_random_state(inside)

    def _copy_buffers(self) -> None:
        self._copies = {key: value.clone() for key, (_, value) in self._values.items()}
        self._saved = {id(self._copies[key]): value for key, (_, value) in self._values.items()}

    def _install_copies(self) -> None:
        for module, _, buffers in self._modules:
            module._buffers.clear()
            module._buffers.update(
                {n: None if b is None else self._copies[id(b)] for n, b in buffers.items()}
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
    """Give ``slots`` its entries of ``before``, in their order, unless it has them."""
    same = len(slots) == len(before) and all(map(is_, slots.values(), before.values()))
    if not (same and all(map(eq, slots, before))):
        slots.clear()
        slots.update(before)


@contextmanager
def isolated(modules: tuple[nn.Module, ...], devices: set[torch.device]) -> Iterator[Isolation]:
    """Evaluate modules with gradients on, autocast off, and without side effects."""
    with ExitStack() as stack:
        # First, so that the copies of the buffers are not inference tensors.
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(_plain_gradients(modules))
        isolation = Isolation(modules, devices)
        stack.callback(isolation.close)
        stack.enter_context(torch.enable_grad())
        for kind in {device.type for device in devices}:
            # Products in half precision have errors of about one percent.
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield isolation


@contextmanager
def _plain_gradients(modules: tuple[nn.Module, ...]) -> Iterator[None]:
    """Dense gradients, without hooks.

    Hooks such as clipping change the step that an optimizer takes, not the loss that it descends. A
    sparse gradient has no second derivative; a dense one has the same values.
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
    """Use the unfused attention kernel: the fused ones have no second derivative."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


def is_compiled(model: nn.Module) -> bool:
    """Whether ``torch.compile`` was applied to a part of the model."""
    return any(
        hasattr(module, "_orig_mod") or module._compiled_call_impl is not None
        for module in model.modules()
    )
