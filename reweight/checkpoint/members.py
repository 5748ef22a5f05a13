"""The processes that save or load together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeVar

import torch.distributed as dist

T = TypeVar("T")

Group = dist.ProcessGroup | Literal["auto"] | None


class Members:
    """The ranks of a process group, or this process alone.

    Args:
        process_group: "auto" is the default group where one is initialised; None: this process
            alone.

    Attributes:
        group: the group; None where this process is alone.
        rank: which of the processes this is.
        size: how many they are.
    """

    def __init__(self, process_group: Group) -> None:
        if isinstance(process_group, str):
            if process_group != "auto":
                raise ValueError(
                    f"process_group={process_group!r}: give a group of torch.distributed, 'auto' "
                    "for the default one, or None for this process alone"
                )
            process_group = dist.group.WORLD if _initialised() else None
        self.group = process_group
        self.rank = 0 if process_group is None else dist.get_rank(process_group)
        self.size = 1 if process_group is None else dist.get_world_size(process_group)

    def gather(self, work: Callable[[], T]) -> list[T]:
        """What every rank's work returns, in the order of ranks; an error of one is raised on all.

        Only errors that work may be expected to raise travel: ValueError and OSError.
        """
        error: Exception | None = None
        result: T | None = None
        try:
            result = work()
        except (ValueError, OSError) as found:
            error = found
        everyone: list[tuple[T | None, Exception | None]] = [(result, error)]
        if self.group is not None:
            everyone = everyone * self.size
            dist.all_gather_object(everyone, (result, error), group=self.group)
        for _, failure in everyone:
            if failure is not None:
                raise failure
        return [each for each, _ in everyone]  # type: ignore[misc]

    def on_first(self, work: Callable[[], None]) -> None:
        """Work of the first rank; the others wait for it, and for its error."""
        self.gather(work if self.rank == 0 else lambda: None)


def _initialised() -> bool:
    return dist.is_available() and dist.is_initialized()
