"""The only place where values of several processes are reduced.

A vector over parameters that one process computed from its own samples passes :func:`all_samples`:
the gradient of the outer loss, every product with the Hessian, and the gradient of the weighter.
A number that one process computed from its own entries of a vector passes :func:`all_entries`:
every inner product and every norm. One process sees all samples and all entries, so by default both
return what they are given. In an outer step of several processes, :func:`shared` gives their group.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from torch import Tensor

Reduce = Callable[[Tensor], Tensor]


class Group(Protocol):
    """What the processes of an outer step ask of each other."""

    rank: int
    size: int
    has_joined: bool

    def numbers(self, *own: float) -> list[list[float]]:
        """The numbers of every process."""

    def total(self, x: Tensor) -> Tensor:
        """The sum of a flat tensor over the processes."""

    def rows(self, x: Tensor) -> list[Tensor]:
        """The tensor ``[n, ...]`` of every process."""

    def whole(self, x: Tensor) -> tuple[Tensor, slice]:
        """The rows of all processes, and the place of one's own."""

    def texts(self, own: str) -> list[str]:
        """A text of every process."""

    def agree(self) -> None:
        """Go on together."""

    def give_up(self, reason: str) -> None:
        """Tell the others that what is tried does not work here."""


_group: ContextVar[Group | None] = ContextVar("group", default=None)
_samples: ContextVar[Reduce | None] = ContextVar("samples", default=None)
_entries: ContextVar[Reduce | None] = ContextVar("entries", default=None)


def shared() -> Group | None:
    """The processes that share the samples; ``None`` where this one has all of them."""
    return _group.get()


def agree() -> None:
    """Go on with what was tried, if no other process has given it up or raised an error.

    Raises:
        AttemptError: it does not work on another one.
        RankError: another one can't go on at all.
    """
    if (group := shared()) is not None:
        group.agree()


def digest(data: bytes) -> float:
    """A hash as a number that float64 holds exactly, to be compared between processes."""
    return float(int.from_bytes(hashlib.sha256(data).digest()[:6], "big"))


def all_samples(x: Tensor) -> Tensor:
    """A flat vector that holds the sum over this process's samples, summed over all processes.

    The vector itself may be overwritten.
    """
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


@contextmanager
def sharing(group: Group | None) -> Iterator[None]:
    """Share samples with other processes while the context is open; ``None``: with none of them."""
    token = _group.set(group)
    try:
        with reducing(samples=None if group is None else group.total):
            yield
    finally:
        _group.reset(token)
