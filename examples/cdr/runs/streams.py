"""What is printed must not cost a training: a reader may leave, a disk may be full."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO


@contextmanager
def lasting_output(tell: str) -> Iterator[None]:
    """Go on where stdout or stderr can no longer be written; of stdout, stderr says so.

    What an encoding such as Latin-1 has no letter for is printed as an escape.

    Args:
        tell: The sentence, in which "{}" is replaced by the reason.
    """
    streams = sys.stdout, sys.stderr
    sys.stderr = _Lasting(sys.stderr)
    sys.stdout = _Lasting(sys.stdout, lambda error: print(tell.format(error), file=sys.stderr))
    try:
        yield
    finally:
        for lasting in (sys.stdout, sys.stderr):
            lasting.flush()
        sys.stdout, sys.stderr = streams


class _Lasting:
    """A text stream whose writes do not fail."""

    def __init__(self, stream: TextIO, tell: Callable[[object], None] = lambda error: None) -> None:
        self._stream, self._tell = stream, tell
        with suppress(AttributeError, ValueError, OSError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._end(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._end(error)

    def _end(self, error: OSError) -> None:
        """Send what comes from here on nowhere, with what is still to be written."""
        with suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        self._tell(error.strerror or error)
