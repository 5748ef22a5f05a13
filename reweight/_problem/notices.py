"""Warnings, at most one per cause; repetitions go to the log."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path

logger = logging.getLogger("reweight")

_PACKAGE = str(Path(__file__).parents[1]) + os.sep


class Notices:
    """Warns once per cause."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def warn(self, cause: str, text: str) -> None:
        """Warn, with the line of the first caller outside of the package."""
        if cause in self._said:
            logger.debug(text)
            return
        self._said.add(cause)
        warnings.warn(f"{text} (Said once.)", stacklevel=_depth_outside() + 1)


def _depth_outside() -> int:
    """The stack level of the first frame outside of the package, counted from the caller."""
    frame, depth = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, depth = frame.f_back, depth + 1
    return depth - 1


class Silent(Notices):
    """Logs what would be a warning: a copy for a check has no user to warn."""

    def warn(self, cause: str, text: str) -> None:
        """Log."""
        logger.debug(text)
