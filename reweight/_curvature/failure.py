"""A mode of Hessian-vector products that does not work, told from other errors."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from reweight._curvature.linearise import Mode
from reweight._tensors import AttemptError, shared

logger = logging.getLogger("reweight")


class ModeFailed(Exception):
    """A mode of Hessian-vector products does not work for this inner loss."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.cause = cause


@contextmanager
def guarded() -> Iterator[None]:
    """Turn errors of a differentiation into :class:`ModeFailed`; a solver raises its own."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise  # another mode would need more memory
    except (RuntimeError, NotImplementedError) as error:
        raise ModeFailed(error) from error


def record(
    failures: dict[Mode, BaseException], mode: Mode, failure: ModeFailed | AttemptError
) -> None:
    """Note why a mode does not work, and tell the other processes if it is this one's finding."""
    logger.info("hvp mode %r does not work for this model: %s", mode, str(failure))
    if isinstance(failure, AttemptError):
        failures[mode] = RuntimeError(str(failure))
        return
    failures[mode] = failure.cause
    if (group := shared()) is not None:
        group.give_up(f"hvp mode {mode!r} does not work: {failure}")
