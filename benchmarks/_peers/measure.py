"""What one call launches, waits for and holds in memory."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# Operations whose result Python needs, or whose shape is known only from values: on a GPU, Python
# waits for them.
WAITING = {
    "aten::_local_scalar_dense",
    "aten::equal",
    "aten::is_nonzero",
    "aten::masked_select",
    "aten::nonzero",
    "aten::unique_consecutive",
    "aten::unique_dim",
    "aten::_unique",
    "aten::_unique2",
}
# Methods that read values without an operation.
READING = {"tolist", "numpy", "__array__"}
_MIB = 2**20

Call = Callable[[], Any]


@dataclass
class Counts:
    """What one call launches and holds.

    Attributes:
        launches: operations that compute a tensor: no views, no questions about shapes.
        waits: operations and methods whose values Python waits for.
        peak_mib: memory.
    """

    launches: int = 0
    waits: int = 0
    peak_mib: float = 0.0


class _Operations(TorchDispatchMode):
    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        self.counts.launches += _computes(func)
        self.counts.waits += func._schema.name in WAITING
        return func(*args, **(kwargs or {}))


def _computes(func: Any) -> bool:
    """Whether an operation has work for a device; a view has none, nor what asks for shapes."""
    returns = [str(each.type) for each in func._schema.returns]
    return not func.is_view and (not returns or any("Tensor" in kind for kind in returns))


class _Reads(TorchFunctionMode):
    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        self.counts.waits += getattr(func, "__name__", "") in READING
        return func(*args, **(kwargs or {}))


def counted(call: Call) -> Counts:
    """The operations and waits of one call, and its peak of memory.

    The peak is the most memory that the call's tensors take at a time, from the allocator's
    records. Scratch space inside kernels is not in it. Unlike resident memory it does not depend on
    what ran before, nor on what the C library keeps.
    """
    counts = Counts()
    profiler = torch.autograd.profiler.profile(profile_memory=True)
    with _silent(), profiler as profile, _Reads(counts), _Operations(counts):
        call()
    events = profile.kineto_results.events()
    records = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    # Sorted by time only: records of the same time keep their order.
    sizes = accumulate(size for _, size in sorted(records, key=lambda record: record[0]))
    counts.peak_mib = max(sizes, default=0) / _MIB
    return counts


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Hides what the profiler writes past Python's ``sys.stderr``."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
