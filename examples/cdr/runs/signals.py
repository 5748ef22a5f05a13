"""Signals that ask a command to end, as an exception that it can clean up after."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# What a terminal, a batch system or a container sends before it kills.
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")


class Ended(KeyboardInterrupt):
    """A signal has come.

    Args:
        number: Of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.code = 128 + number  # the exit code by convention


class _Held:
    """Whether signals are held back, and the one that has come meanwhile."""

    def __init__(self) -> None:
        self.depth = 0
        self.number: int | None = None


_held = _Held()


@contextmanager
def ending_by_signals() -> Iterator[None]:
    """Raise :class:`Ended` in the main thread when a signal asks to end.

    A signal that is ignored, as SIGHUP is under ``nohup``, stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python delivers signals to the main thread only
        return
    before = {}
    for number in (getattr(signal, name) for name in _NAMES if hasattr(signal, name)):
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, _raise)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def held_back() -> Iterator[None]:
    """Let signals wait for the end of the block, which must be short."""
    _held.depth += 1
    try:
        yield
    finally:
        _held.depth -= 1
        number, waiting = _held.number, not _held.depth
        if waiting:
            _held.number = None
    if waiting and number is not None:
        raise Ended(number)


def _raise(number: int, frame: FrameType | None) -> None:
    if _held.depth:
        _held.number = number
        return
    raise Ended(number)
