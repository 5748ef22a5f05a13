"""Several processes that train one model, each on its share of every batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

# How long a process that has failed waits for the others to hear of it. They do at their next
# collective operation; one that is in an operation of another group can't.
_PATIENCE = timedelta(seconds=20)


class Stopped(ValueError):
    """This process cannot go on without the others; they know, or cannot be told."""


class Processes:
    """The processes that train one model together.

    All make the same random draws and the same decisions. A batch is drawn whole by each of them,
    which then works on its share of the rows.

    Every operation that communicates is preceded by a short one, in which a process that failed
    tells the others: all raise, instead of waiting for it.

    Args:
        group: Of ``torch.distributed``; None: one process alone. It then shares and communicates
            nothing.

    Attributes:
        group: As given.
        rank: Which of the processes this is, from 0.
        size: How many they are.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.rank = 0 if group is None else dist.get_rank(group)
        self.size = 1 if group is None else dist.get_world_size(group)

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes files and prints."""
        return self.rank == 0

    def share(self, rows: Tensor) -> Tensor:
        """The share of this process: consecutive rows, as many as the others have, or one less.

        Fewer rows than there are processes go to all of them: no share is empty, and means over
        all processes are those of the rows.

        Args:
            rows: The same in all processes, [n, ...].

        Returns:
            [m, ...].
        """
        if self.size == 1 or len(rows) < self.size:
            return rows
        return torch.tensor_split(rows, self.size)[self.rank]

    def total(self, x: Tensor) -> Tensor:
        """The sum over all processes, equal in all of them bit for bit; of the shape of ``x``.

        Raises:
            Stopped: Another process has failed.
        """
        if self.group is None:
            return x
        self._agree(x.numel())
        result = x.detach().clone(memory_format=torch.contiguous_format)
        with self._reaching():
            dist.all_reduce(result, group=self.group)
        return result

    def rows_of_all(self, x: Tensor) -> list[Tensor]:
        """The rows [m, ...] of each process, in the order of ranks; m may differ.

        Raises:
            Stopped: Another process has failed.
        """
        if self.group is None:
            return [x]
        counts = torch.zeros(self.size, dtype=torch.int64, device=x.device)
        counts[self.rank] = len(x)
        lengths = self.total(counts).tolist()
        # Of one length, since not every backend gathers tensors of different ones.
        padded = x.new_zeros(max(lengths), *x.shape[1:])
        padded[: len(x)] = x.detach()
        parts = [torch.empty_like(padded) for _ in lengths]
        with self._reaching():
            dist.all_gather(parts, padded, group=self.group)
        return [part[:length] for part, length in zip(parts, lengths, strict=True)]

    def wait(self) -> None:
        """Wait until all processes are here.

        Raises:
            Stopped: Another process has failed.
        """
        if self.group is not None:
            self._agree(0)

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """If the block fails here, make it fail in the other processes too."""
        try:
            yield
        except Stopped:
            raise  # the others know
        except Exception as error:
            if self.group is not None:
                # A process that has ended, or that waits elsewhere, can't be told any more.
                with suppress(RuntimeError):
                    self._tell(error)
            raise

    def _agree(self, numel: int) -> None:
        """Check that no process has failed, and that all are about to do the same."""
        header = self._header(0, numel)
        with self._reaching():
            dist.all_reduce(header, dist.ReduceOp.MAX, group=self.group)
        failed, most, least = header.tolist()
        if failed:
            raise Stopped(self._reasons(None))
        if most != -least:
            raise Stopped(
                f"processes exchange {-least:,} to {most:,} numbers, and should exchange equally "
                "many: they do not take the same steps. Give all of them the same arguments and "
                "the same version of the code"
            )

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        """Say what the backend's error about a lost connection means."""
        try:
            yield
        except RuntimeError as error:
            raise Stopped(
                f"process {self.rank} of {self.size} has lost the others: one has ended or was "
                f"killed, and its own output tells why ({str(error).splitlines()[0][:150]})"
            ) from error

    def _tell(self, error: Exception) -> None:
        header = self._header(1, 0)
        work = dist.all_reduce(header, dist.ReduceOp.MAX, group=self.group, async_op=True)
        assert work is not None
        work.wait(_PATIENCE)
        self._reasons(f"process {self.rank} of {self.size}: {error}")

    def _reasons(self, own: str | None) -> str:
        """What the processes that failed say."""
        reasons: list[str | None] = [None] * self.size
        dist.all_gather_object(reasons, own, group=self.group)
        return "; ".join(reason for reason in reasons if reason is not None)

    def _header(self, failed: int, numel: int) -> Tensor:
        return torch.tensor([failed, numel, -numel])


ALONE = Processes()
"""One process."""
