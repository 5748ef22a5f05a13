"""Errors that mean that there was no memory left."""

from __future__ import annotations

import torch

# Torch has no class of its own for them on the CPU.
_TOLD = (
    *("can't allocate memory", "not enough memory", "Cannot allocate memory", "out of memory"),
    "failed to map segment",  # of a library that is loaded where it is first used
)
_MAY_TELL = (RuntimeError, OSError, ImportError)


def out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or what it was raised for, says that memory ran out."""
    if error is None:
        return False
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(error, _MAY_TELL) and any(told in str(error) for told in _TOLD):
        return True
    return out_of_memory(error.__cause__)
