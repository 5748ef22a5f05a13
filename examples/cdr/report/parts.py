"""The parts of a report: one that fails costs neither the others nor a training."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

from cdr.report import plots
from cdr.report.readable import readable

logger = logging.getLogger("cdr")

_LONGEST = 200
# What a report imports when it is made, after hours of training.
_LATER = ("jinja2", "pyarrow.parquet", "scipy.optimize", "scipy.special")


class Parts:
    """Makes the parts of a report.

    Args:
        warning: The sentence that is printed on one that fails, with "{}" for what is told.

    Attributes:
        failed: The names of the parts that could not be made.
        refused: The first error of the system, such as a full disk.
    """

    def __init__(self, warning: str = "{}") -> None:
        self._warning = warning
        self.failed: list[str] = []
        self.refused: OSError | None = None

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Make a part; go on without it if that fails, with one warning.

        Args:
            name: What it is, for the warning.
        """
        try:
            yield
        except Exception as error:
            self.failed.append(name)
            if isinstance(error, OSError):
                self.refused = self.refused or error
            why = readable(" ".join(str(error).split()), _LONGEST)
            told = f"{name} could not be made, and is left out: {type(error).__name__}: {why}"
            logger.warning("%s", told, exc_info=error)
            print(self._warning.format(told), file=sys.stderr)


@contextmanager
def written_in_parts(warning: str = "{}") -> Iterator[Parts]:
    """Make the parts of a report, all that can be made.

    Args:
        warning: See :class:`Parts`.

    Raises:
        OSError: The system refused to write one, as on a full disk: to be made again when it does
            not. Any other failure is told, and would come again.
    """
    parts = Parts(warning)
    yield parts
    if parts.refused is not None:
        raise parts.refused


def try_imports(warning: str = "{}") -> None:
    """Try what a report imports, before the first training.

    Args:
        warning: The sentence that is printed where pictures cannot be drawn although matplotlib is
            installed, with "{}" for what is told.

    Raises:
        ValueError: A report cannot be made.
    """
    for name in _LATER:
        try:
            import_module(name)
        except Exception as error:  # whatever a broken installation raises
            package = name.partition(".")[0]
            raise ValueError(
                f"a report needs {package}, which cannot be imported ({type(error).__name__}: "
                f"{readable(str(error), _LONGEST)}): pip install --force-reinstall {package}"
            ) from error
    if told := plots.broken():
        print(warning.format(f"no pictures will be drawn: {told}"), file=sys.stderr)
