"""A model of ``fully_shard`` (FSDP2) as a plain one, for the time of an outer step.

FSDP2 gathers the parameters of a module in hooks around its forward pass, in the type that its
policy names, and reduces gradients in hooks of the backward pass. A second derivative knows nothing
of the latter. So the parameters are gathered here once, as they are stored, and stand in their
modules as ordinary parameters, while FSDP2's hooks are off.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from reweight._sharded.hooks import without_hooks
from reweight._sharded.kinds import FSDP, is_fully_sharded, is_sharded, managed_by_fsdp
from reweight._sharded.stand_ins import StandIns


class FullySharded:
    """The parameters that ``fully_shard`` manages in some modules.

    Args:
        parts: every module that the losses use.
        stand_ins: gets a plain parameter for each of them.
    """

    def __init__(self, parts: Sequence[nn.Module], stand_ins: StandIns) -> None:
        self._parts, self._stand_ins = parts, stand_ins
        self._roots: list[Any] = [part for part in parts if is_fully_sharded(part)]
        self._managed = managed_by_fsdp(parts)

    def __bool__(self) -> bool:
        return bool(self._roots)

    def reshard(self) -> None:
        """Let the modules hold shards, which after a pass without a backward pass not all do."""
        for root in self._roots:
            root.reshard()

    def parameters(self) -> dict[int, Tensor]:
        """The shards, by their ``id``."""
        managed = (part for part in self._parts if id(part) in self._managed)
        slots = (p for part in managed for p in part._parameters.values())
        return {id(p): p for p in slots if is_sharded(p)}

    @contextmanager
    def gathered(self, others: set[int]) -> Iterator[None]:
        """Let plain parameters stand for the shards.

        Every process has to open the context. It takes the memory of the whole model.

        Args:
            others: the ``id`` of sharded parameters that are not FSDP2's.
        """
        shards = {key: p for key, p in self.parameters().items() if key not in others}
        places = [
            (part._parameters, name, p)
            for part in self._parts
            for name, p in part._parameters.items()
            if p is not None and id(p) in shards
        ]
        try:
            for shard in shards.values():
                self._stand_ins.give(shard, full(shard), full)
            for slots, name, p in places:
                slots[name] = self._stand_ins.of(p)
            with without_hooks(self._parts, FSDP):
                yield
        finally:
            for slots, name, p in places:
                slots[name] = p
            for shard in shards.values():
                self._stand_ins.take(shard)


def full(x: Tensor) -> Tensor:
    """All of a sharded tensor, without a graph; a collective operation."""
    with torch.no_grad():
        whole: Tensor = x.full_tensor()  # type: ignore[attr-defined]
        # Where one process has everything, it is the very tensor that the shard holds.
        return whole.clone() if whole.data_ptr() == x.to_local().data_ptr() else whole  # type: ignore[attr-defined]
