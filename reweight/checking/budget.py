"""A limit of time, and a word now and then on long work."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from reweight._tensors import let_through

logger = logging.getLogger("reweight")

# Seconds between two words on the progress; short work says nothing.
_QUIET = 5.0


class OutOfTime(BaseException):
    """The limit is used up.

    Not an ``Exception``, because a model may catch those for reasons of its own.
    """


class Budget:
    """Seconds that may be spent from now on.

    Attributes:
        seconds: the limit.
        stage: what is being done, in words.
    """

    def __init__(self, seconds: float) -> None:
        if not seconds > 0.0:
            raise ValueError(
                f"max_seconds={seconds!r} leaves no time for a check: pass a number above 0, or "
                "math.inf for no limit"
            )
        self.seconds = seconds
        self.stage = "evaluating the losses"
        self._start = self._said = time.monotonic()
        self._end = self._start + seconds
        self._line = ""

    def spend(self) -> None:
        """To be called before each evaluation.

        Raises:
            OutOfTime: the limit is used up.
        """
        let_through()
        now = time.monotonic()
        if now > self._end:
            raise OutOfTime
        if now - self._said > _QUIET:
            self._said = now
            self._say(f"{self.stage}, {now - self._start:.0f} of at most {self.seconds:g} s")

    @contextmanager
    def at_most(self, share: float) -> Iterator[None]:
        """Spend only a share of what is left while the context is open."""
        end, now = self._end, time.monotonic()
        self._end = now + share * (end - now)
        try:
            yield
        finally:
            self._end = end

    @contextmanager
    def reported(self) -> Iterator[None]:
        """Take the line of the progress off the terminal in the end."""
        try:
            yield
        finally:
            if self._line:
                print("\r" + " " * len(self._line) + "\r", end="", file=sys.stderr, flush=True)

    def _say(self, text: str) -> None:
        text = f"check_hypergradient: {text}"
        if sys.stderr is not None and sys.stderr.isatty():
            print("\r" + text.ljust(len(self._line)), end="", file=sys.stderr, flush=True)
            self._line = text
        else:
            logger.info(text)
