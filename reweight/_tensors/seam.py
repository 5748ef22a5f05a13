"""The only place where values of several processes are reduced.

A vector over parameters that one process computed from its own samples passes :func:`all_samples`:
the gradient of the outer loss, every product with the Hessian, and the gradient of the weighter.
A number that one process computed from its own entries of a vector passes :func:`all_entries`:
every inner product and every norm. One process sees all samples and all entries, so by default both
return what they are given; a data-parallel or a sharded run puts its all-reduce here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

Reduce = Callable[[Tensor], Tensor]

_samples: ContextVar[Reduce | None] = ContextVar("samples", default=None)
_entries: ContextVar[Reduce | None] = ContextVar("entries", default=None)


def all_samples(x: Tensor) -> Tensor:
    """A flat vector that holds the sum over this process's samples, summed over all processes."""
    reduce = _samples.get()
    return x if reduce is None else reduce(x)


def alone() -> bool:
    """Whether this process has all samples."""
    return _samples.get() is None


def all_entries(x: Tensor, power: int = 1) -> Tensor:
    """A number computed from this process's entries of a vector, reduced over all processes.

    Args:
        x: ``(Σ xᵢ)^(1/power)`` over the entries: a sum, or with ``power=2`` a norm.
        power: see ``x``.
    """
    reduce = _entries.get()
    return x if reduce is None else reduce(x**power) ** (1.0 / power)


@contextmanager
def reducing(*, samples: Reduce | None = None, entries: Reduce | None = None) -> Iterator[None]:
    """Reduce in the given ways while the context is open, in this thread."""
    tokens = _samples.set(samples), _entries.set(entries)
    try:
        yield
    finally:
        _samples.reset(tokens[0])
        _entries.reset(tokens[1])
