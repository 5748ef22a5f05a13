"""The log of trainings, for a file or for a folder that is made at the end."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TypeVar

from cdr.common import to_json
from cdr.training import RESTARTED

logger = logging.getLogger("cdr")

_NAMES = ("cdr", "reweight", "py.warnings")
_FORMAT = "%(asctime)s %(name)s %(levelname)s: %(message)s"
_Handler = TypeVar("_Handler", bound=logging.Handler)


@contextmanager
def logged(handler: _Handler) -> Iterator[_Handler]:
    """Send the log and the warnings of the example and of the library to a handler.

    The handler is closed when the block ends.
    """
    handler.setFormatter(logging.Formatter(_FORMAT))
    loggers = [logging.getLogger(name) for name in _NAMES]
    logging.captureWarnings(True)
    for logger in loggers:
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
    try:
        yield handler
    finally:
        with suppress(OSError):  # the disk of the log may be full
            handler.close()
        logging.captureWarnings(False)
        for logger in loggers:
            logger.removeHandler(handler)


class KeptLog(logging.Handler):
    """A handler that stores the records as text."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._lines: list[str] = []

    @property
    def text(self) -> str:
        """A line for each record."""
        return "".join(line + "\n" for line in self._lines)

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(self.format(record))


def log_history(name: str, history: Sequence[Mapping[str, float]], restarted: bool = False) -> None:
    """Log the record of each epoch of a training.

    Args:
        name: Of the training.
        history: One record per epoch.
        restarted: Whether it was begun once more.
    """
    if restarted:
        logger.warning("%s: %s", name, RESTARTED)
    for record in history:
        logger.info("%s %s", name, to_json(record))
