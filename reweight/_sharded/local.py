"""The part of a sharded tensor that one process has."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def local(x: Any) -> Tensor:
    """The part that this process has; the same memory, without a graph."""
    with torch.no_grad():
        part: Tensor = x.to_local()
        return part.detach()


def first_row(x: Any) -> tuple[int, int]:
    """The first row that this process has, and the most rows that any process has.

    As ``torch.chunk`` splits a tensor; one that is not split along its rows starts at 0 everywhere.
    """
    for size, at, placement in zip(
        x.device_mesh.shape, x.device_mesh.get_coordinate(), x.placements, strict=True
    ):
        if placement.is_shard(0):
            most = -(-len(x) // size)
            return min(at * most, len(x)), most
    return 0, len(x)


def local_row(x: Any, row: int) -> int | None:
    """Where this process has a row of a tensor; ``None`` if it has none of it."""
    at = row - first_row(x)[0]
    return at if 0 <= at < len(local(x)) else None
