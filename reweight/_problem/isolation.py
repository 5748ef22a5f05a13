"""Forward passes without side effects.

An outer step evaluates the user's model several times. Whatever those passes change (BatchNorm
statistics, attributes, a codebook, the batch, ``.grad``, the random state) is put back, after an
exception too.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrize

from reweight._problem.objects import Objects
from reweight._problem.random_state import Generators
from reweight._problem.writes import Guard, Writes, all_of, memory
from reweight._tensors import Tree, let_through, map_tensors, set_version, tensors_in

# What Accelerate's prepare() sets on a module to open autocast in it.
_ACCELERATES = {"forward", "_original_forward"}


class Isolation:
    """Saves the state that a forward pass may change, and restores it.

    The state is the buffers and the attributes of some modules (``training``, a cached attention
    map), the gradients of parameters, the random state of some devices, and memory that ``guard``
    knows to be written. From :meth:`open` to :meth:`close` the modules use copies of their buffers,
    and new copies after every :meth:`restore`. So a graph that saved a buffer keeps its values,
    whatever the next pass writes.

    Args:
        parts: every module that a pass uses, see :func:`parts_of`.
        devices: whose random state is saved.
        theta: the inner parameters. Values that a pass gives them stay until :meth:`close`.
        guard: what passes are known to write into.
        batches: tensors of the batches.
        watch: whether to find out what passes write, and tell ``guard``.
        objects: lists, dicts, arrays and generators that passes may change.

    Attributes:
        lost: what was written although nothing was known of it, after :meth:`close`.
    """

    def __init__(
        self,
        parts: Sequence[nn.Module],
        devices: set[torch.device],
        theta: Tree | None = None,
        guard: Guard | None = None,
        batches: Iterable[Tensor] = (),
        *,
        watch: bool = False,
        objects: Iterable[Any] = (),
    ) -> None:
        theta = theta or {}
        self._objects = Objects(objects)
        self._writes = Writes() if watch else None
        self._modules = [(part, dict(vars(part)), dict(part._buffers)) for part in parts]
        inner = {id(p) for p in theta.values()}
        # A buffer that is learned is a parameter under another name.
        self._values = {
            id(buffer): (buffer, buffer.clone())
            for _, _, buffers in self._modules
            for buffer in buffers.values()
            if buffer is not None and not (id(buffer) in inner or _is_learned(buffer))
        }
        self._generators = Generators(devices)
        self._start = self._outside = self._generators.now()
        parameters = parameters_of(parts) | {id(p): p for p in theta.values()}
        self._leaves = [_Leaf(p) for p in parameters.values()]
        self._guard, self._batches = guard or Guard(), list(batches)
        self._theta = theta
        self._guarded: dict[int | None, tuple[Tensor, Tensor]] = {
            memory(x): (x, x.clone()) for x in self._guard.known()
        }
        self._versions = {key: (p, p._version) for key, p in parameters.items()}
        self.include(self._batches)
        self.lost: list[Tensor] = []

    def open(self) -> None:
        """Give the modules their copies. Not before :meth:`close` is sure to be called."""
        self._copy_buffers()
        self._install_copies()
        self._clear_gradients()

    def include(self, batch: Iterable[Tensor]) -> None:
        """Guard the tensors of a batch."""
        for x in batch:
            if not x.is_inference():
                # A loader may use the same memory for one batch after the other.
                self._versions[id(x)] = x, x._version
            if x.is_leaf:
                self._leaves.append(_Leaf(x))
            if not self._guard.batches:
                continue
            key = memory(x)
            if key is not None and key not in self._guarded:
                whole = all_of(x)
                self._guarded[key] = whole, whole.clone()

    def watched(self) -> AbstractContextManager[Any]:
        """A context around a pass that is to be watched, if this isolation watches."""
        return nullcontext() if self._writes is None else self._writes

    def restore(self, *, copies: bool = True) -> None:
        """Let the next pass start from the saved state.

        Args:
            copies: whether to make new copies of the buffers. Not inside a transform of
                ``torch.func``, whose tensors must not stay in a module: see :meth:`saved`.
        """
        let_through()  # between two passes: what is changed now, close() puts back
        self.rewind()
        for module, attributes, _ in self._modules:
            _put_back(vars(module), attributes)
        if copies:
            self._copy_buffers()
        self._install_copies()
        self._objects.restore()
        for leaf in self._leaves:
            leaf.restore_data()
        for key, (whole, value) in self._known_writes().items():
            if key not in self._of_theta:
                whole.copy_(value)
        self._clear_gradients()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Run passes while a graph waits for its backward pass.

        The graph may have saved memory that a pass writes, so this is put back to what it was when
        the context was opened.
        """
        now = [(whole, whole.clone()) for whole, _ in self._known_writes().values()]
        versions = [(x, x._version) for x, _ in self._versions.values()] if now else []
        try:
            yield
        finally:
            for whole, value in now:
                whole.copy_(value)
            for x, version in versions:
                if x._version != version:
                    set_version(x, version)

    def saved(self, buffer: Tensor) -> Tensor:
        """A new tensor with the saved value of a buffer that a module uses now."""
        return self._saved.get(id(buffer), buffer).clone()

    def writes_into(self, x: Tensor) -> bool:
        """Whether a pass is known to write into a tensor."""
        written = self._known_writes()
        return bool(written) and memory(x) in written

    def rewrites(self, theta: Tree) -> list[str]:
        """The inner parameters to which a pass has given other values."""
        replaced = {id(leaf.tensor) for leaf in self._leaves if leaf.is_replaced}
        changed = {
            key
            for key, (whole, value) in self._known_writes().items()
            if key in self._of_theta and not torch.equal(whole, value)
        }
        if not (replaced or changed):
            return []
        return [n for n, p in theta.items() if id(p) in replaced or memory(p) in changed]

    def close(self) -> None:
        """Put everything back."""
        self._generators.put(self._outside)
        for module, attributes, buffers in self._modules:
            _put_back(vars(module), attributes)
            _put_back(module._buffers, buffers)
        self._objects.restore()
        written = self._known_writes()
        for whole, value in written.values():
            whole.copy_(value)
        for x, version in self._versions.values():
            if x._version == version:
                continue
            if memory(x) in written:
                # The values are those from before, so a graph that saved the tensor is valid.
                set_version(x, version)
            else:
                self.lost.append(x)
        if self._writes is not None:
            tensors = [
                (part, name, x)
                for part, before, _ in self._modules
                for name, x in before.items()
                if isinstance(x, Tensor)
            ]
            self._guard.learn(self._writes, self._batches, tensors)
        for leaf in self._leaves:
            leaf.restore()

    @property
    def has_drawn(self) -> bool:
        """Whether the last pass drew random numbers."""
        return self._generators.differ(self._start)

    def rewind(self) -> None:
        """Restore the random state only, so that the next pass draws the same numbers."""
        self._generators.put(self._start)

    @contextmanager
    def outside(self) -> Iterator[None]:
        """Use the user's random state while the context is open, and keep its progress."""
        inside = self._generators.now()
        self._generators.put(self._outside)
        try:
            yield
        finally:
            self._outside = self._generators.now()
            self._generators.put(inside)

    def _known_writes(self) -> dict[int | None, tuple[Tensor, Tensor]]:
        if self._writes is None or not self._writes.before:
            return self._guarded
        return {**self._writes.before, **self._guarded}

    @functools.cached_property
    def _of_theta(self) -> set[int | None]:
        return {memory(p) for p in self._theta.values()}

    def _clear_gradients(self) -> None:
        for leaf in self._leaves:
            if leaf.tensor.grad is not None:
                leaf.tensor.grad = None

    def _copy_buffers(self) -> None:
        self._copies = {key: value.clone() for key, (_, value) in self._values.items()}
        self._saved = {id(self._copies[key]): value for key, (_, value) in self._values.items()}
        if self._writes is not None:
            self._writes.ignore(self._copies.values())

    def _install_copies(self) -> None:
        for module, _, buffers in self._modules:
            module._buffers.clear()
            module._buffers.update(
                {n: b if b is None else self._copies.get(id(b), b) for n, b in buffers.items()}
            )


class _Leaf:
    """A leaf with its gradient, its flag, and the memory of its values."""

    __slots__ = ("_at", "_data", "_grad", "_requires_grad", "tensor")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self._grad, self._requires_grad = tensor, tensor.grad, tensor.requires_grad
        # An alias, by which a pass that replaces tensor.data is found out.
        self._data = tensor.data if tensor.layout is torch.strided else None
        self._at = 0 if self._data is None else self._data.data_ptr()

    @property
    def is_replaced(self) -> bool:
        return self._data is not None and self.tensor.data_ptr() != self._at

    def restore_data(self) -> None:
        if self.is_replaced:
            self.tensor.data = self._data  # type: ignore[assignment]

    def restore(self) -> None:
        self.restore_data()
        if self.tensor.requires_grad is not self._requires_grad:
            self.tensor.requires_grad_(self._requires_grad)
        if self.tensor.grad is not self._grad:
            self.tensor.grad = self._grad


def _is_learned(buffer: Tensor) -> bool:
    return buffer.requires_grad and buffer.is_leaf


def _put_back(slots: dict[str, Any], before: dict[str, Any]) -> None:
    """Give ``slots`` its entries of ``before``, in their order, unless it has them."""
    same = len(slots) == len(before) and all(map(is_, slots.values(), before.values()))
    if not (same and [*slots] == [*before]):
        slots.clear()
        slots.update(before)


@contextmanager
def isolated(
    parts: Sequence[nn.Module],
    devices: set[torch.device],
    theta: Tree | None = None,
    guard: Guard | None = None,
    batches: Iterable[Tensor] = (),
    *,
    watch: bool = False,
    objects: Iterable[Any] = (),
) -> Iterator[Isolation]:
    """Evaluate modules with gradients on, autocast off, and without side effects.

    For the arguments see :class:`Isolation`.
    """
    with ExitStack() as stack:
        # First, so that the copies of the buffers are not inference tensors.
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(_plain_gradients(parts, theta or {}))
        stack.enter_context(_no_cached_parametrizations())
        stack.enter_context(_no_autocast_inside(parts))
        isolation = Isolation(parts, devices, theta, guard, batches, watch=watch, objects=objects)
        stack.callback(isolation.close)
        isolation.open()
        stack.enter_context(torch.enable_grad())
        for kind in {device.type for device in devices}:
            # Products in half precision have errors of about one percent.
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield isolation


@contextmanager
def _plain_gradients(parts: Sequence[nn.Module], theta: Tree) -> Iterator[None]:
    """Dense gradients, without hooks.

    A sparse gradient has no second derivative; a dense one has the same values. What hooks do to
    the gradients of inner parameters is looked at elsewhere.
    """
    leaves = parameters_of(parts) | {id(p): p for p in theta.values()}
    hooks = [(leaf, leaf._backward_hooks) for leaf in leaves.values()]
    kept: list[tuple[object, str, Any]] = []

    def change(owner: object, name: str, value: Any) -> None:
        kept.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    try:
        for part in parts:
            for name in ("_backward_hooks", "_backward_pre_hooks"):
                if vars(part).get(name):
                    change(part, name, OrderedDict())
            if isinstance(part, (nn.Embedding, nn.EmbeddingBag)) and part.sparse:
                change(part, "sparse", False)
        for leaf in leaves.values():
            if leaf._backward_hooks:
                change(leaf, "_backward_hooks", None)
            # Losses may call backward() themselves, which would run an optimizer's hook.
            if getattr(leaf, "_post_accumulate_grad_hooks", None):
                change(leaf, "_post_accumulate_grad_hooks", None)
        yield
    finally:
        for owner, name, value in reversed(kept):
            setattr(owner, name, value)
        for leaf, before in hooks:  # of which a pass may have registered some
            if leaf._backward_hooks is not before:
                leaf._backward_hooks = before


@contextmanager
def _no_cached_parametrizations() -> Iterator[None]:
    """Compute parametrized weights anew, also inside ``torch.nn.utils.parametrize.cached()``.

    A cached weight does not follow when parameters are moved, and holds the graph of one pass.
    """
    enabled, cache = parametrize._cache_enabled, parametrize._cache
    parametrize._cache_enabled, parametrize._cache = 0, {}
    try:
        yield
    finally:
        parametrize._cache_enabled, parametrize._cache = enabled, cache


@contextmanager
def _no_autocast_inside(parts: Sequence[nn.Module]) -> Iterator[None]:
    """Call the ``forward`` that Accelerate wrapped in autocast, without its wrapper.

    That autocast opens inside the call, where turning it off around the call does not reach it.
    """
    wrapped = [(part, vars(part)["forward"]) for part in parts if vars(part).keys() >= _ACCELERATES]
    try:
        for part, _ in wrapped:
            part.forward = vars(part)["_original_forward"]
        yield
    finally:
        for part, forward in wrapped:
            part.forward = forward


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Use the unfused attention kernel: the fused ones have no second derivative."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


def differentiable(batch: Any) -> Any:
    """A batch without inference tensors, which no graph can save: these are copied."""
    if not any(x.is_inference() for x in tensors_in(batch)):
        return batch
    with torch.inference_mode(False):
        return map_tensors(lambda x: x.clone() if x.is_inference() else x, batch)


def parts_of(*modules: nn.Module) -> list[nn.Module]:
    """The modules and all modules inside them, each once."""
    return list(dict.fromkeys(part for module in modules for part in module.modules()))


def parameters_of(parts: Iterable[nn.Module]) -> dict[int, Tensor]:
    """The parameters that some modules hold themselves, each once, by their ``id``."""
    return {id(p): p for part in parts for p in part._parameters.values() if p is not None}


def is_compiled(parts: Iterable[nn.Module]) -> bool:
    """Whether ``torch.compile`` was applied to one of some modules."""
    return any(hasattr(part, "_orig_mod") or part._compiled_call_impl is not None for part in parts)
