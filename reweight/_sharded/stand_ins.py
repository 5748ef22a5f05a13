"""Plain parameters that stand for sharded ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from reweight._sharded.optimizers import Read, as_read


class StandIns:
    """A plain parameter for each of some sharded ones, the same object in every outer step.

    What is known of a model from earlier steps is known by its parameters. Between outer steps a
    stand-in holds no memory.
    """

    def __init__(self) -> None:
        self._of: dict[int, tuple[Tensor, nn.Parameter]] = {}
        self._readers: dict[int, Read] = {}

    def of(self, original: Tensor) -> nn.Parameter:
        """The stand-in of a sharded parameter, or of one that is to be."""
        found = self._of.get(id(original))
        if found is None:
            empty = torch.empty(0, dtype=original.dtype)
            found = original, nn.Parameter(empty, requires_grad=False)
            self._of[id(original)] = found
        return found[1]

    def give(self, original: Tensor, values: Tensor, read: Read) -> None:
        """Let the stand-in hold ``values``.

        Args:
            original: the sharded parameter.
            values: what stands for it.
            read: gives of a tensor that is sharded as the parameter what stands for it.
        """
        stand_in = self.of(original)
        stand_in.data = values
        stand_in.requires_grad_(original.requires_grad)
        self._readers[id(original)] = read

    def take(self, original: Tensor) -> None:
        """Free the memory of a stand-in."""
        stand_in = self.of(original)
        stand_in.grad = None
        stand_in.data = stand_in.data.new_empty(0)
        self._readers.pop(id(original), None)

    def optimizers(self, optimizers: Sequence[Optimizer]) -> tuple[Optimizer, ...]:
        """The optimizers as they would be if they held the stand-ins; for reading only."""
        given = {
            key: (original, stand_in, self._readers[key])
            for key, (original, stand_in) in self._of.items()
            if key in self._readers
        }
        return tuple(as_read(each, given) for each in optimizers)

    def originals(self) -> dict[int, Tensor]:
        """The sharded parameter of each stand-in, by the ``id`` of the stand-in."""
        return {id(stand_in): original for original, stand_in in self._of.values()}
