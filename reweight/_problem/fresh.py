"""The linear systems of further train batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from reweight._curvature import System
from reweight._problem.isolation import Isolation


class FreshBatches:
    """The systems of further train batches, one after the other.

    A second iteration starts again with the batches that the first one took.

    Args:
        batches: train batches, as the user passed them.
        system: ``batch -> System``.
        isolation: in which the model is evaluated.
    """

    def __init__(
        self, batches: Iterable[Any], system: Callable[[Any], System], isolation: Isolation
    ) -> None:
        if not isinstance(batches, Iterable):
            raise TypeError(
                f"batches must be an iterable of train batches, got {type(batches).__name__}"
            )
        self._system, self._isolation = system, isolation
        with isolation.outside():  # iter() of a loader draws the seed of its order
            self._remaining = iter(batches)
        self._taken: list[Any] = []

    def __iter__(self) -> Iterator[System]:
        for batch in self._taken:
            yield self._system(batch)
        while True:
            # A loader's shuffle draws from the user's random state.
            with self._isolation.outside():
                try:
                    batch = next(self._remaining)
                except StopIteration:
                    return
            self._taken.append(batch)
            yield self._system(batch)
