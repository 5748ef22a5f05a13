"""What is logged, kept for a folder that is only made at the end."""

from __future__ import annotations

import logging

NAMES = ("cdr", "reweight", "py.warnings")
FORMAT = "%(asctime)s %(name)s %(levelname)s: %(message)s"


class KeptLog(logging.Handler):
    """Within a ``with`` block, the log and the warnings of the example and of the library."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.setFormatter(logging.Formatter(FORMAT))
        self._lines: list[str] = []

    @property
    def text(self) -> str:
        """A line for each record."""
        return "".join(line + "\n" for line in self._lines)

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(self.format(record))

    def __enter__(self) -> KeptLog:
        logging.captureWarnings(True)
        for name in NAMES:
            logging.getLogger(name).setLevel(logging.INFO)
            logging.getLogger(name).addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.captureWarnings(False)
        for name in NAMES:
            logging.getLogger(name).removeHandler(self)
