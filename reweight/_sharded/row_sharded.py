"""Row-sharded embedding tables by the rows that a step reads.

Each process has some rows of such a table, and no process needs more of it than the rows that the
batches of all processes look up. So one pass over the batches finds these rows; the processes
exchange them; and for the time of the outer step the module is an embedding of these rows only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from reweight._sharded.hooks import without_hooks
from reweight._sharded.kinds import TENSOR_PARALLEL, is_from, is_row_sharded, is_sharded
from reweight._sharded.local import first_row, local
from reweight._sharded.stand_ins import StandIns
from reweight._tensors import Group


class RowSharded:
    """The row-sharded tables among the parameters of some modules.

    Args:
        parts: every module that the losses use.
        names: the names of parameters by their ``id``, for messages.
        stand_ins: gets a plain parameter for each table.
    """

    def __init__(
        self, parts: Sequence[nn.Module], names: Mapping[int, str], stand_ins: StandIns
    ) -> None:
        found: dict[int, tuple[Tensor, list[nn.Embedding]]] = {}
        for part in parts:
            weight = part._parameters.get("weight")
            if isinstance(part, nn.Embedding) and is_sharded(weight) and is_row_sharded(part):
                found.setdefault(id(weight), (weight, []))[1].append(part)
        self._stand_ins = stand_ins
        self._tables = [
            _Table(weight, modules, names.get(key, "an embedding table"), stand_ins)
            for key, (weight, modules) in found.items()
        ]

    def __bool__(self) -> bool:
        return bool(self._tables)

    def parameters(self) -> dict[int, Tensor]:
        """The tables, by their ``id``."""
        return {id(table.weight): table.weight for table in self._tables}

    def is_current(self) -> bool:
        """Whether the modules still hold these tables."""
        return all(table.is_current() for table in self._tables)

    @contextmanager
    def by_rows(self, exchange: Group, passes: Callable[[], None]) -> Iterator[None]:
        """Let embeddings of the rows that some passes read stand for the tables.

        Every process has to open the context.

        Args:
            exchange: the processes, which together have all rows.
            passes: evaluates the losses as the step will; each process on its own batches.

        Raises:
            ValueError: a module gives something else than look-ups of its ids.
        """
        with ExitStack() as stack:
            for table in self._tables:
                stack.enter_context(table.in_place())
                table.record(exchange)
            passes()
            for table in self._tables:
                table.serve(exchange)
            yield


class _Table:
    """One table, with the modules that look up in it."""

    def __init__(
        self, weight: Tensor, modules: list[nn.Embedding], name: str, stand_ins: StandIns
    ) -> None:
        self.weight, self._modules, self.name = weight, modules, name
        self._stand_ins = stand_ins
        self._hooks = {
            id(module): (
                [h for h in module._forward_pre_hooks.values() if is_from(h, TENSOR_PARALLEL)],
                [h for h in module._forward_hooks.values() if is_from(h, TENSOR_PARALLEL)],
            )
            for module in modules
        }
        self._shard = _Shard(weight, name)
        self._rows, self._values = torch.empty(0), torch.empty(0)
        self._compared: set[int] = set()

    def is_current(self) -> bool:
        """Whether the modules still hold this table."""
        return all(module._parameters.get("weight") is self.weight for module in self._modules)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the modules back as they are now when the context closes."""
        before = [(module, module.padding_idx, dict(vars(module))) for module in self._modules]
        try:
            with without_hooks(self._modules, TENSOR_PARALLEL):
                yield
        finally:
            for module, padding, slots in before:
                module.padding_idx = padding
                if "forward" in slots:
                    vars(module)["forward"] = slots["forward"]
                else:
                    vars(module).pop("forward", None)
                module._parameters["weight"] = self.weight  # type: ignore[assignment]
            self._stand_ins.take(self.weight)
            self._rows, self._values = torch.empty(0), torch.empty(0)

    def record(self, exchange: Group) -> None:
        """Let the modules look up in all processes, and keep the rows that are read."""
        local = self._shard.local
        self._rows = torch.empty(0, dtype=torch.long, device=local.device)
        self._values = local.new_empty(0, local.shape[1])
        # Of the shape of the table, without its memory: whoever uses it as a whole is found out.
        self._stand_ins.give(
            self.weight, local.new_zeros(()).expand(self.weight.shape), lambda x: x
        )
        for module in self._modules:
            module._parameters["weight"] = self._stand_ins.of(self.weight)
            vars(module)["forward"] = _Recording(self, module, exchange)

    def serve(self, exchange: Group) -> None:
        """Let the modules look up among the rows that were read."""
        rows = self._rows
        self._stand_ins.give(
            self.weight, self._values, lambda x: _Shard(x, self.name).read(rows, exchange)
        )
        for module in self._modules:
            vars(module)["forward"] = _Serving(self.name, module, rows)
            if module.padding_idx is not None:
                at, there = _find(torch.tensor([module.padding_idx]).to(rows), rows)
                module.padding_idx = int(at) if bool(there) else None

    def look_up(self, ids: Tensor, exchange: Group) -> Tensor:
        """The rows of some ids, which may lie in other processes; every process has to call it."""
        count = len(self.weight)
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < count:
            raise IndexError(
                f"{self.name} has {count} rows, and the ids that are looked up go from "
                f"{int(ids.min())} to {int(ids.max())}"
            )
        wanted = torch.unique(torch.cat(exchange.rows(torch.unique(ids.reshape(-1)).long())))
        if len(self._rows):
            wanted = wanted[~_find(wanted, self._rows)[1]]
        # All processes see the same union, so they agree on whether there is more to exchange.
        if len(wanted):
            rows = torch.cat([self._rows, wanted])
            values = torch.cat([self._values, self._shard.read(wanted, exchange)])
            self._rows, order = torch.sort(rows)
            self._values = values[order]
        if not ids.numel():
            return self._values.new_empty(*ids.shape, self._values.shape[1])
        found = self._values[_find(ids, self._rows)[0]]
        # A leaf, since losses may differentiate by what they look up.
        return found.requires_grad_(self.weight.requires_grad and torch.is_grad_enabled())

    def compare(self, module: nn.Embedding, given: tuple[Any, ...], found: Tensor) -> None:
        """Raise, once for each module, where the module itself gives something else than rows."""
        if id(module) in self._compared:
            return
        self._compared.add(id(module))
        own = self._by_itself(module, given)
        if is_sharded(own) or own.shape != found.shape or not torch.equal(own, found):
            kind = "DTensor" if is_sharded(own) else "tensor"
            got = f"a {kind} of shape {tuple(own.shape)}"
            raise ValueError(
                f"{self.name} is sharded by rows, and its module gives {got} where look-ups of "
                f"its ids give a tensor of shape {tuple(found.shape)}"
                f"{'' if own.shape != found.shape else ' and other values'}: its layouts spread "
                "one input over processes, as sequence parallelism does. Outer steps serve "
                "RowwiseParallel with input_layouts=Replicate() (the same ids in every process) "
                "or with Shard(0) for both layouts (each process has its own samples)"
            )

    def _by_itself(self, module: nn.Embedding, given: tuple[Any, ...]) -> Any:
        """What the module gives with its own weight and the hooks that spread it, no others."""
        before, after = self._hooks[id(module)]
        stand_in = module._parameters["weight"]
        module._parameters["weight"] = self.weight  # type: ignore[assignment]
        try:
            for hook in before:
                changed = hook(module, given)
                if changed is not None:
                    given = changed if isinstance(changed, tuple) else (changed,)
            found: Any = type(module).forward(module, *given)
            for hook in after:
                changed = hook(module, given, found)
                found = found if changed is None else changed
            return found
        finally:
            module._parameters["weight"] = stand_in


class _Shard:
    """The rows of a table that this process has.

    Args:
        x: the table, or a tensor that is sharded as it is.
        name: the table's name, for messages.
    """

    def __init__(self, x: Any, name: str) -> None:
        self.local: Tensor = local(x)
        self._first, size = first_row(x)
        # Where meshes of more dimensions hold copies of a row, one process provides it.
        at = x.device_mesh.get_coordinate()
        copies = [c for c, p in zip(at, x.placements, strict=True) if p.is_replicate()]
        self._provides = not any(copies)
        if len(self.local) != min(self._first + size, len(x)) - self._first:
            raise TypeError(
                f"{name} is sharded by rows in unusual parts: this process has {len(self.local)} "
                f"of {len(x)} rows, and torch.chunk would give it {size}. Shard it with "
                "RowwiseParallel or distribute_tensor(table, mesh, [Shard(0)])"
            )

    def read(self, rows: Tensor, exchange: Group) -> Tensor:
        """Some rows of the whole table, ``[r, D]``, from the processes that have them."""
        values = self.local.new_zeros(len(rows), *self.local.shape[1:])
        if self._provides:
            at = rows - self._first
            own = (at >= 0) & (at < len(self.local))
            values[own] = self.local[at[own]]
        # One process has the row and all others add zero, so the sum is exact.
        return exchange.total(values.reshape(-1)).view(values.shape)


class _Recording:
    """The ``forward`` of a table's module while the rows are found."""

    def __init__(self, table: _Table, module: nn.Embedding, exchange: Group) -> None:
        self._table, self._module, self._exchange = table, module, exchange

    def __call__(self, input: Tensor) -> Tensor:
        if is_sharded(input):
            raise TypeError(
                f"{self._table.name} is sharded by rows and looks up ids that are sharded too: "
                "pass each process its own ids as a plain tensor"
            )
        found = self._table.look_up(input, self._exchange)
        self._table.compare(self._module, (input,), found)
        return found


class _Serving:
    """The ``forward`` of a table's module that holds the rows of a step only."""

    def __init__(self, name: str, module: nn.Embedding, rows: Tensor) -> None:
        self._name, self._module, self._rows = name, module, rows

    def __call__(self, input: Tensor) -> Tensor:
        at, there = _find(input, self._rows)
        if not bool(there.all()):
            raise RuntimeError(
                f"the losses look up rows of {self._name} that they did not look up in an earlier "
                "pass over the same batch, such as negatives drawn with a generator that is not "
                "restored. Draw ids where batches are made, or from torch's own random state"
            )
        return functional.embedding(at, self._module.weight, self._module.padding_idx)


def _find(wanted: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Positions of ids in ``rows``, which are in ascending order, and whether each is there."""
    if not len(rows):
        return torch.zeros_like(wanted, dtype=torch.long), torch.zeros_like(
            wanted, dtype=torch.bool
        )
    at = torch.searchsorted(rows, wanted.long().contiguous()).clamp(max=len(rows) - 1)
    return at, rows[at] == wanted
