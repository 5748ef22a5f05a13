"""A model of ``fully_shard`` (FSDP2) as a plain one, for the time of an outer step.

FSDP2 gathers the parameters of a module in hooks around its forward pass, in the type that its
policy names, and reduces gradients in hooks of the backward pass. A second derivative knows nothing
of the latter. So the parameters are gathered here once, as they are stored, and stand in their
modules as ordinary parameters, while FSDP2's hooks are off.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from reweight._sharded.hooks import without_hooks
from reweight._sharded.kinds import FSDP, is_fully_sharded, is_sharded, managed_by_fsdp
from reweight._sharded.local import local
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

    def reduces(self, params: Iterable[Tensor], size: int) -> bool:
        """Whether a backward pass leaves the mean of gradients over processes in these shards.

        That is so where each shard is one of ``size``, and no gradients wait to be reduced, as they
        do while FSDP2 accumulates them. Where it can't be told, it counts as not so.
        """
        own = self.parameters()
        for p in params:
            mesh: Any = getattr(p, "device_mesh", None)
            if id(p) not in own or mesh.ndim != 1 or mesh.size() != size:
                return False
        groups = [group for root in self._roots for group in _groups(root)]
        return bool(groups) and not any(map(_is_accumulating, groups))

    @contextmanager
    def local(self, params: Sequence[Tensor]) -> Iterator[None]:
        """Let stand-ins share the memory of this process's shards. The modules keep the shards."""
        try:
            for p in params:
                self._stand_ins.give(p, local(p), local)
            yield
        finally:
            for p in params:
                self._stand_ins.take(p)
            self.reshard()

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


def _groups(root: Any) -> list[Any]:
    """What FSDP2 knows of the parameters that it gathers together; releases differ in names."""
    state = getattr(root, "_get_fsdp_state", lambda: None)()
    several = getattr(state, "_fsdp_param_groups", None)
    if several is None:
        several = [getattr(state, "_fsdp_param_group", None)]
    return [group for group in several if group is not None]


def _is_accumulating(group: Any) -> bool:
    """Whether gradients wait to be reduced, or will."""
    if getattr(group, "reduce_grads", False) is not True:
        return True
    return any(
        getattr(p, "unsharded_accumulated_grad", None) is not None
        or getattr(getattr(p, "_unsharded_param", None), "grad", None) is not None
        for p in group.fsdp_params
    )


def full(x: Tensor) -> Tensor:
    """All of a sharded tensor, without a graph; a collective operation."""
    with torch.no_grad():
        whole: Tensor = x.full_tensor()  # type: ignore[attr-defined]
        # Where one process has everything, it is the very tensor that the shard holds.
        return whole.clone() if whole.data_ptr() == local(x).data_ptr() else whole
