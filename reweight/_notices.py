"""What is worth a warning, said once per cause; every further time it goes to the log."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path

logger = logging.getLogger("reweight")

_PACKAGE = str(Path(__file__).parent) + os.sep


class Notices:
    """Remembers which causes were warned of."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def warn(self, cause: str, text: str) -> None:
        """Warn at the line outside the package that led here."""
        if cause in self._said:
            logger.debug(text)
            return
        self._said.add(cause)
        warnings.warn(f"{text} (Said once.)", stacklevel=_depth_outside() + 1)


def _depth_outside() -> int:
    """The stack level of the first frame that is not this package's, seen from the caller."""
    frame, depth = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, depth = frame.f_back, depth + 1
    return depth - 1
