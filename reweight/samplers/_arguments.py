"""Checks of the numbers that a sampler takes."""

from __future__ import annotations

import operator
from typing import Any


def at_least(minimum: int, name: str, value: Any) -> int:
    """``value`` as an int of at least ``minimum``; raises otherwise."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {value!r} of type {type(value).__name__}")
    if number < minimum:
        raise ValueError(f"{name} = {number} must be {minimum} or more")
    return number


def optional_size(dev_batch_size: int | None) -> int | None:
    """A dev batch size of at least 1, or ``None``."""
    return None if dev_batch_size is None else at_least(1, "dev_batch_size", dev_batch_size)


def replica(num_replicas: int, rank: int) -> tuple[int, int]:
    """``num_replicas`` and ``rank`` as ints, with ``rank`` below ``num_replicas``."""
    num_replicas = at_least(1, "num_replicas", num_replicas)
    rank = at_least(0, "rank", rank)
    if rank >= num_replicas:
        raise ValueError(
            f"rank = {rank} does not exist among num_replicas = {num_replicas}; ranks count from 0"
        )
    return num_replicas, rank
