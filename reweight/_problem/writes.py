"""Which tensors a forward pass writes into, and their values from before.

A pass may move a codebook, clamp a weight through ``.data``, normalise its batch in place or update
a tensor that a list holds. :class:`Writes` watches a pass operation by operation, which takes time;
:class:`Guard` remembers what was found, so that later passes are not watched.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode


class Writes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While this mode is active, memory that existed before is copied before it is written.

    Attributes:
        before: by memory: all of it as one tensor, and its values from before the first write.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.before: dict[int | None, tuple[Tensor, Tensor]] = {}
        # A weak reference keeps the address of freed memory from being used again.
        self._new: dict[int, StorageWeakRef] = {}

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        """Let tensors be written without a copy."""
        for tensor in tensors:
            self._created(tensor, set())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        schema = func._schema
        if schema.is_mutable:
            given = {a.name: x for a, x in zip(schema.arguments, args, strict=False)} | kwargs
            for argument in schema.arguments:
                if argument.alias_info is not None and argument.alias_info.is_write:
                    self._keep(given.get(argument.name))
        elif schema.name in _UNMARKED:
            self._keep(args[3:5])
        result = func(*args, **kwargs)
        if not func.is_view:
            taken = {memory(entry) for entry in args if isinstance(entry, Tensor)}
            for entry in result if isinstance(result, (tuple, list)) else (result,):
                self._created(entry, taken)
        return result

    def _created(self, x: Any, taken: set[int | None]) -> None:
        key = memory(x) if isinstance(x, Tensor) else None
        if key is not None and key not in taken and key not in self._new:
            self._new[key] = StorageWeakRef(_values(x).untyped_storage())  # type: ignore[no-untyped-call]

    def _keep(self, x: Any) -> None:
        if isinstance(x, (list, tuple)):
            for entry in x:
                self._keep(entry)
        elif isinstance(x, Tensor):
            key = memory(x)
            if key is not None and key not in self._new and key not in self.before:
                whole = all_of(x)
                self.before[key] = whole, whole.clone()


# Operations that write into their arguments 3 and 4, the running statistics, which their schema
# does not say.
_UNMARKED = {"aten::native_batch_norm", "aten::cudnn_batch_norm", "aten::miopen_batch_norm"}


def memory(x: Tensor) -> int | None:
    """Identifies the memory of a tensor; ``None`` where it has no single one."""
    try:
        return int(_values(x).untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return None


def all_of(x: Tensor) -> Tensor:
    """All of the memory that a tensor is a view of, flat, outside of any graph."""
    x = _values(x)
    storage = x.untyped_storage()
    count = storage.nbytes() // x.element_size()
    with torch.no_grad():
        return torch.empty(0, dtype=x.dtype, device=x.device).set_(storage, 0, (count,), (1,))


def _values(x: Tensor) -> Tensor:
    """The strided tensor that holds the values of a sparse one, or the tensor itself."""
    if x.layout is torch.sparse_coo:
        return x._values()
    return x if x.layout is torch.strided else x.values()


class Guard:
    """What passes were found to write into, so that it can be put back.

    Attributes:
        state: memory that lives longer than a batch.
        places: modules and their attributes whose tensors are written. A tensor that is assigned
            there later, as at the begin of an epoch, is written too.
        batches: whether passes write into their batch.
        objects: lists, dicts, arrays and generators that passes may change.
    """

    def __init__(self) -> None:
        self.state: dict[int | None, Tensor] = {}
        self.places: set[tuple[nn.Module, str]] = set()
        self.batches = False
        self.objects: list[Any] = []
        self._seen: set[object] = set()

    def is_new(self, kind: object) -> bool:
        """Whether no pass of this kind was watched yet; it counts as watched from now on."""
        new = kind not in self._seen
        self._seen.add(kind)
        return new

    def known(self) -> Iterator[Tensor]:
        """What the next pass is known to write into, besides its batch; flat."""
        yield from self.state.values()
        for part, name in self.places:
            x = vars(part).get(name)
            if isinstance(x, Tensor) and memory(x) is not None:
                yield all_of(x)

    def learn(
        self,
        writes: Writes,
        batches: Iterable[Tensor],
        attributes: Iterable[tuple[nn.Module, str, Tensor]],
    ) -> None:
        """Remember what a watched pass wrote.

        Args:
            writes: what it wrote.
            batches: tensors of its batches.
            attributes: the tensors that were attributes of modules when it began, by their place.
        """
        self.places |= {(part, name) for part, name, x in attributes if memory(x) in writes.before}
        of_batches = {memory(x) for x in batches}
        for key, (whole, _) in writes.before.items():
            if key in of_batches:
                self.batches = True
            else:
                self.state[key] = whole
