"""Signals that wait while something of the user's is changed for a time.

A handler of Python runs between any two bytecodes of the main thread, and that of Ctrl-C raises
``KeyboardInterrupt`` there: between the two lines that put a parameter back, too. No ``finally``
helps against that. So handlers are called later, when everything is as it was.
"""

from __future__ import annotations

import functools
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

# Those that a program may have handlers of: looking at all of them takes half a millisecond.
_NAMES = (
    *("INT", "TERM", "HUP", "QUIT", "BREAK", "ALRM", "VTALRM", "PROF"),
    *("USR1", "USR2", "CHLD", "CONT", "TSTP", "WINCH", "XCPU", "XFSZ", "PIPE", "IO"),
)
_SIGNALS = tuple(getattr(signal, f"SIG{n}") for n in _NAMES if hasattr(signal, f"SIG{n}"))

Handler = Callable[[int, FrameType | None], Any]


class _Hold:
    """Stands in for the handlers of all signals that have one in Python.

    Attributes:
        active: whether signals are kept. Where they are not, each goes on to its own handler, so
            a hold that was not taken off again loses nothing.
    """

    def __init__(self) -> None:
        self.active = False
        self._handlers: dict[int, Handler] = {}
        self._waiting: list[tuple[int, FrameType | None]] = []

    def begin(self) -> None:
        try:
            for number in _SIGNALS:
                handler = signal.getsignal(number)
                if callable(handler):
                    self._handlers[number] = handler
                    signal.signal(number, self._note)
            self.active = True  # the last step: until here signals take their usual way
        except BaseException:
            self._put_back()
            raise

    def end(self) -> None:
        try:
            self.active = False  # from here on signals take their usual way, which may be to raise
            self._put_back()
        except BaseException:
            self._put_back()
            raise
        finally:
            self._serve()

    def _put_back(self) -> None:
        for number, handler in self._handlers.items():
            # Compared by value: a bound method is a new object each time.
            if signal.getsignal(number) == self._note:
                signal.signal(number, handler)

    def _serve(self) -> None:
        """Call the handlers of all signals that wait, also where one of them raises."""
        if self._waiting:
            number, frame = self._waiting.pop(0)
            try:
                self._handlers[number](number, frame)
            finally:
                self._serve()

    def let_through(self) -> None:
        """Call the handler of Ctrl-C, if it was pressed."""
        for place, (number, frame) in enumerate(self._waiting):
            if number == signal.SIGINT:
                del self._waiting[place]
                self._handlers[number](number, frame)
                return

    def _note(self, number: int, frame: FrameType | None) -> None:
        again = number == signal.SIGINT and any(n == number for n, _ in self._waiting)
        if not self.active or again:
            # Whoever presses Ctrl-C twice will not wait, for code of theirs that hangs.
            self._handlers[number](number, frame)
        else:
            self._waiting.append((number, frame))


_hold = _Hold()  # the one of the main thread, at most one being active


@contextmanager
def held() -> Iterator[None]:
    """Keep signals until the context is closed: then their handlers are called.

    For signals with a handler in Python, in the main thread, where these run. Ctrl-C is also served
    by :func:`let_through`, and at once where it is pressed again.
    """
    global _hold
    if _hold.active or threading.current_thread() is not threading.main_thread():
        yield
        return
    _hold = hold = _Hold()
    hold.begin()
    try:
        yield
    finally:
        hold.end()


def uninterrupted(function: Callable[P, T]) -> Callable[P, T]:
    """The function, in a context of :func:`held`."""

    # Not held() as a decorator: its frame would stand between a warning and the user's line.
    @functools.wraps(function)
    def inside(*args: P.args, **kwargs: P.kwargs) -> T:
        with held():
            return function(*args, **kwargs)

    return inside


def let_through() -> None:
    """Serve a Ctrl-C that is waiting: to be called where an exception leaves nothing behind.

    Other signals wait on. Their handlers may raise an ``Exception``, which would look like one of
    the user's losses.
    """
    if _hold.active and threading.current_thread() is threading.main_thread():
        _hold.let_through()
