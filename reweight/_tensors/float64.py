"""Computations in float64, whatever type a model asks for.

Models take a norm in float32 on purpose, cast their inputs with ``.float()``, or hold tables of
float32 that no module has registered. A comparison with finite differences needs all of it in
float64.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

WIDER = {
    torch.float32: torch.float64,
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.complex64: torch.complex128,
}
# Operations that read some entries of a tensor, which may be a large table or a data set.
_READING = frozenset(("aten::index", "aten::index_select", "aten::embedding", "aten::gather"))


class InFloat64(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While this mode is active, operations take and give float64 in the place of smaller types.

    Operands are widened, except for those that an operation writes into and those of views, which
    share memory. Of a tensor that is indexed, the entries that are read are widened. Results of
    casts and factories are widened, and so is the default type.

    The mode makes operations slow, so its owner may want to know whether it does anything.

    Attributes:
        rounded_to: the smaller type that a result was written in last, if any was: the mode can't
            widen a tensor that an operation writes into.
        needed: whether an operation met or was asked for a smaller type.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rounded_to: torch.dtype | None = None
        self.needed = False
        self._defaults: list[AbstractContextManager[None]] = []

    def __enter__(self) -> InFloat64:
        self._defaults.append(default_double())
        self._defaults[-1].__enter__()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._defaults.pop().__exit__(None, None, None)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if not _holds((args, tuple(kwargs.values())), WIDER.keys()):
            return func(*args, **kwargs)
        result = self._in_double(func, args, kwargs)
        # torch.promote_types is an operation too, which gives the number of a type.
        self.needed |= not isinstance(result, int)
        return result

    def _in_double(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if func.is_view:
            return func(*args, **kwargs)
        schema = func._schema
        kept = {
            a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write
        }
        if schema.name in _READING and not kept:
            return _widened(func(*args, **kwargs))
        # Positional arguments come in the order of the schema.
        named = zip(schema.arguments, args, strict=False)
        args = tuple(x if argument.name in kept else _widened(x) for argument, x in named)
        kwargs = {name: x if name in kept else _widened(x) for name, x in kwargs.items()}
        if kept and self._rounds(schema, kept, args, kwargs):
            self.rounded_to = torch.float32
        return func(*args, **kwargs)

    def _rounds(self, schema: Any, kept: set[str], args: Any, kwargs: Any) -> bool:
        """Whether a smaller type is written with values that were computed in float64."""
        given = {a.name: x for a, x in zip(schema.arguments, args, strict=False)} | kwargs
        written = any(_holds(given.get(name), WIDER.keys()) for name in kept)
        return written and any(
            _holds(x, (torch.float64, torch.complex128))
            for name, x in given.items()
            if name not in kept
        )


def _widened(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x.to(WIDER[x.dtype]) if x.dtype in WIDER else x
    if isinstance(x, torch.dtype):
        return WIDER.get(x, x)
    if isinstance(x, (list, tuple)):
        return type(x)(_widened(entry) for entry in x)
    return x


def _holds(x: Any, dtypes: Container[torch.dtype]) -> bool:
    """Whether there is a tensor of one of some types, or one of the types itself."""
    if isinstance(x, (list, tuple)):
        return any(_holds(entry, dtypes) for entry in x)
    dtype = x.dtype if isinstance(x, Tensor) else x
    return isinstance(dtype, torch.dtype) and dtype in dtypes


@contextmanager
def default_double() -> Iterator[None]:
    """New tensors are float64 unless their type is given."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def widened_in_place(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Give tensors float64 values while the context is open, and then their own storage back.

    The tensors stay the same objects, so whatever holds them computes in float64: a list, a
    closure, another module. A graph that was recorded before holds other leaves afterwards:
    ``torch.autograd.grad`` no longer finds them in it.
    """
    before: list[tuple[Tensor, Tensor]] = []
    try:
        for tensor in tensors:
            if tensor.dtype in WIDER:
                own = tensor.data
                before.append((tensor, own))
                tensor.data = own.to(WIDER[own.dtype])
        yield
    finally:
        for tensor, own in before:
            tensor.data = own
