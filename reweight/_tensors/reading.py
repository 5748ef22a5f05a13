"""Numbers that the host reads from a device, many in one transfer.

Each transfer makes the host wait for the device. So whatever need not be known at once is collected
and read together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from reweight._tensors.seam import all_entries

Look = Callable[[list[float]], None]


def can_read(x: Tensor) -> bool:
    """Whether the host may read values of ``x`` now: not while a CUDA graph is captured."""
    return not (x.is_cuda and torch.cuda.is_current_stream_capturing())


def can_branch_on(x: Tensor) -> bool:
    """Whether what Python does may depend on values of ``x``.

    It may not where it is done once for many values: while code is compiled or a CUDA graph is
    captured, and inside ``torch.vmap``, where ``x`` stands for many tensors.
    """
    if torch.compiler.is_compiling() or not can_read(x):
        return False
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(x):
        if functorch.is_batchedtensor(x):
            return False
        x = functorch.get_unwrapped(x)
    return True


def read(*numbers: Tensor) -> list[list[float]]:
    """The entries of several vectors of numbers, in one transfer from each device."""
    devices = {x.device for x in numbers}
    if len(devices) == 1:
        values = (torch.cat(numbers) if len(numbers) > 1 else numbers[0]).tolist()
        parts = iter(values)
        return [[next(parts) for _ in range(len(x))] for x in numbers]
    found: dict[int, list[float]] = {}
    for device in devices:
        places = [i for i, x in enumerate(numbers) if x.device == device]
        found.update(zip(places, read(*(numbers[i] for i in places)), strict=True))
    return [found[i] for i in range(len(numbers))]


def inner_products(*pairs: tuple[Tensor, Tensor]) -> Tensor:
    """The inner products of pairs of flat vectors, ``[len(pairs)]``, still on their device."""
    return all_entries(torch.stack([torch.dot(x, y) for x, y in pairs]))


def ends(*tensors: Tensor) -> Tensor:
    """The smallest and the largest entry of each tensor that has entries; NaN where one is NaN."""
    found = [end for x in tensors if x.numel() for end in torch.aminmax(x.detach())]
    if len({(end.dtype, end.device) for end in found}) > 1:
        found = [end.to(found[0].device, torch.float64) for end in found]
    return torch.stack(found) if found else torch.zeros(0)


def norms_of(*tensors: Tensor) -> Tensor:
    """The Euclidean norm of each tensor; 0 where all squares underflow."""
    found = [torch.linalg.vector_norm(x.detach()) for x in tensors]
    if len({(size.dtype, size.device) for size in found}) > 1:
        found = [size.to(found[0].device, torch.float64) for size in found]
    return torch.stack(found)


class Pending:
    """Numbers that are to be looked at, in the order in which they were added."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Tensor, Look]] = []

    def add(self, numbers: Tensor, look: Look) -> None:
        """Have ``look`` called with the values of a vector of numbers when they are read.

        While a CUDA graph is captured nothing is: values can be looked at when it is replayed.

        Args:
            numbers: ``[n]``.
            look: may raise; then those that were added later are not looked at.
        """
        if can_read(numbers):
            self._waiting.append((numbers, look))

    def read(self, *numbers: Tensor) -> list[list[float]]:
        """Read and look at all that was added, and return the values of further ``numbers``."""
        waiting, self._waiting = self._waiting, []
        values = read(*(x for x, _ in waiting), *numbers) if waiting or numbers else []
        for (_, look), found in zip(waiting, values, strict=False):
            look(found)
        return values[len(waiting) :]


def now_or_later(numbers: Tensor, look: Look, pending: Pending | None) -> None:
    """Look at numbers when ``pending`` is read, or now where it is ``None``."""
    later = Pending() if pending is None else pending
    later.add(numbers, look)
    if pending is None:
        later.read()


def largest_of(found: Sequence[float]) -> float:
    """The largest absolute value; ``nan`` if one is, 0 if there are none."""
    sizes = [abs(value) for value in found]
    return max(sizes, key=lambda x: (x != x, x), default=0.0)
