"""A model whose parameters lie in shards, made plain in place for the time of an outer step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from reweight._sharded.fully_sharded import FullySharded
from reweight._sharded.kinds import (
    TENSOR_PARALLEL,
    hooks_of,
    is_from,
    is_fully_sharded,
    is_sharded,
)
from reweight._sharded.row_sharded import RowSharded
from reweight._sharded.stand_ins import StandIns
from reweight._tensors import Group


def in_shards(parts: Iterable[nn.Module]) -> bool:
    """Whether some modules hold sharded parameters."""
    return any(
        is_fully_sharded(part) or any(map(is_sharded, part._parameters.values())) for part in parts
    )


class Shards:
    """What of a model lies in shards.

    Args:
        parts: every module that the losses use.
        names: the names of parameters by their ``id``, for messages.

    Raises:
        TypeError: a parameter that is sharded in a way that is not supported.
    """

    def __init__(self, parts: Sequence[nn.Module], names: Mapping[int, str]) -> None:
        self.stand_ins = StandIns()
        self._parts = list(parts)
        self._fully = FullySharded(parts, self.stand_ins)
        self._fully.reshard()
        self._rows = RowSharded(parts, names, self.stand_ins)
        self._tables = set(self._rows.parameters())
        self._check(parts, names)

    def is_of(self, parts: Sequence[nn.Module]) -> bool:
        """Whether this is still what of these modules lies in shards."""
        return self._parts == parts and self._rows.is_current()

    @property
    def has_rows(self) -> bool:
        """Whether there are row-sharded tables."""
        return bool(self._rows)

    def tables(self) -> list[Tensor]:
        """The row-sharded tables."""
        return list(self._rows.parameters().values())

    def reshard(self) -> None:
        """Let the modules hold shards, which after a pass without a backward pass not all do."""
        self._fully.reshard()

    def reduces(self, params: Iterable[Tensor], size: int) -> bool:
        """Whether a backward pass leaves the mean of gradients over processes in these shards."""
        return not self._rows and self._fully.reduces(params, size)

    @contextmanager
    def local(self, params: Sequence[Tensor]) -> Iterator[StandIns]:
        """Stand-ins that share the memory of this process's shards.

        What is written into them is written into the shards. The modules keep their shards, and
        gather them in their passes: call :meth:`reshard` between writing and a pass.
        """
        with self._fully.local(params):
            yield self.stand_ins

    def served(self) -> set[int]:
        """The ``id`` of every sharded parameter."""
        return self._tables | set(self._fully.parameters())

    @contextmanager
    def plain(self, exchange: Group | None, passes: Callable[[], None]) -> Iterator[StandIns]:
        """Let the modules hold plain parameters.

        FSDP2's parameters are gathered. Row-sharded tables are represented by the rows that the
        batches of all processes read. When the context closes, after an exception too, everything
        is as it was, and the modules hold their shards. Every process has to open it.

        Args:
            exchange: the processes among which tables are sharded; ``None`` where there are none.
            passes: evaluates the losses once as the step will, without a graph.
        """
        self._fully.reshard()
        with self._fully.gathered(self._tables):
            if exchange is None or not self._rows:
                yield self.stand_ins
            else:
                with self._rows.by_rows(exchange, passes):
                    yield self.stand_ins

    def _check(self, parts: Sequence[nn.Module], names: Mapping[int, str]) -> None:
        """Raise for parameters that are sharded neither by FSDP2 nor by rows."""
        fully = self._fully.parameters()
        for part in parts:
            spread = any(is_from(hook, TENSOR_PARALLEL) for hook in hooks_of(part))
            for key, p in part._parameters.items():
                if not is_sharded(p) or id(p) in self._tables:
                    continue
                if id(p) in fully and not spread:
                    continue
                raise TypeError(_unsupported(names.get(id(p), key), part, p))


def _unsupported(name: str, part: nn.Module, p: Tensor | None) -> str:
    kind = type(part).__name__
    placements = ", ".join(map(str, p.placements))  # type: ignore[union-attr]
    return (
        f"{name} of a {kind} is sharded over processes as [{placements}], which outer steps do not "
        "support: they serve parameters of fully_shard (FSDP2), and the table of an nn.Embedding "
        "that RowwiseParallel shards by rows and fully_shard leaves alone. Instead of tensor "
        "parallelism use fully_shard(model), which serves layers of every kind"
    )
