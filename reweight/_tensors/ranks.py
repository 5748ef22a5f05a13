"""The processes that share the samples of an outer step, and what they send each other.

Before every exchange all ranks gather a small header: what each of them is about to do. A rank that
has raised an error says so in its header, wherever the others are, so that all of them stop at once
and none waits for a message that never comes.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, distributed

from reweight._tensors.checks import NotFiniteError
from reweight._tensors.interrupts import held
from reweight._tensors.seam import sharing

# A header: the kind of exchange, its size, what went wrong, who asks, and numbers of the caller.
_HEADER, _OWN = 16, 4
# Bytes of a text, such as the message of an error.
_TEXT = 2048
_KINDS = ("the end of an outer step", "an exchange of numbers", "a sum", "rows", "texts")
_END, _NUMBERS, _SUM, _ROWS, _TEXTS = range(len(_KINDS))
_FINE, _FAILED, _GIVES_UP, _NOT_FINITE = 0.0, 1.0, 2.0, 3.0
# The types that a header can state, by their place.
_TYPES = (
    *(torch.float64, torch.float32, torch.bfloat16, torch.float16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    *(torch.complex128, torch.complex64),
)


class RankError(Exception):
    """Another process could not go on, so this one stops too.

    Attributes:
        not_finite: whether all that stopped others is a value or a derivative that is not finite.
    """

    not_finite = False


class AttemptError(Exception):
    """What was tried does not work on another process, so no process goes on with it."""


@dataclass
class Traffic:
    """What one process gave to exchanges so far.

    Attributes:
        headers: how often it gave a header, of 128 bytes, which is gathered.
        summed: the bytes that it gave to sums. On a ring of ``R`` processes each of them sends
            ``2(R − 1)/R`` of that over the wire.
        gathered: the bytes that it gave to be gathered, without headers. On a ring each process
            sends ``R − 1`` times of that.
    """

    headers: int = 0
    summed: int = 0
    gathered: int = 0


class _Connection:
    """The process group that the exchanges between the members of another group use.

    There is one for all calls of ``wrap``: a process keeps the groups that it has made, with their
    threads and open files, until its end.

    Attributes:
        group: the process group.
        users: how many objects have used it.
    """

    def __init__(self, group: Any, members: list[int], backend: str) -> None:
        # Local groups meet by a name that counts the groups of a process, which differ in number
        # where some processes have groups that others have not.
        local = len(members) < distributed.get_world_size()
        self.group = distributed.new_group(
            members, _timeout(group), backend, use_local_synchronization=local
        )
        self.users = 0


# By the process group that wrap was given.
_connections: WeakKeyDictionary[Any, _Connection] = WeakKeyDictionary()


class Ranks:
    """A group of processes, each with its own samples.

    Args:
        group: the process group whose members share the samples. Exchanges use another one with
            the same members, so that they never meet a message of the training.

    Attributes:
        rank: the place of this process in the group.
        size: the number of processes.
        traffic: what was exchanged so far.
        has_joined: whether this step made a graph whose backward pass exchanges; see :meth:`whole`.
    """

    def __init__(self, group: Any) -> None:
        members = distributed.get_process_group_ranks(group)
        backend = distributed.get_backend(group)
        self.rank, self.size = distributed.get_rank(group), len(members)
        connection = _connections.get(group)
        if connection is None:
            try:
                connection = _Connection(group, members, backend)
            except RuntimeError as error:
                raise RankError(
                    f"rank {self.rank} of {self.size} has waited for the other processes in vain "
                    f"({_reason(error)}): every process of the group must call wrap(...), and as "
                    "often as the others"
                ) from error
            _connections[group] = connection
        self._group = connection.group
        connection.users += 1
        self._user = connection.users
        self._device = torch.device("cpu")
        if "nccl" in backend and "gloo" not in backend:
            self._device = torch.device("cuda", torch.cuda.current_device())
        self.traffic = Traffic()
        self.has_joined = False

    def __deepcopy__(self, memo: dict[int, Any]) -> Ranks:
        """The same processes: there is one connection to them."""
        return self

    # -- exchanges -----------------------------------------------------------------------------

    def numbers(self, *own: float) -> list[list[float]]:
        """The numbers of every rank, in the order of the ranks; up to 12 of each."""
        return [each[: len(own)] for each in self._meet(_NUMBERS, len(own), own)]

    def total(self, x: Tensor) -> Tensor:
        """The sum of a flat tensor over the ranks, bit-equal on all; ``x`` may be overwritten."""
        self._meet(_SUM, _bytes(x))
        message = x.detach().contiguous().to(self._device)
        if message.numel():
            self.traffic.summed += _bytes(message)
            self._exchange(lambda: distributed.all_reduce(message, group=self._group))
        return message.to(x.device)

    def rows(self, x: Tensor) -> list[Tensor]:
        """The tensor ``[n, ...]`` of every rank; they may differ in ``n`` and in the type.

        The result has the type that holds all rows.
        """
        width = math.prod(x.shape[1:])
        of_ranks = self._meet(_ROWS, width, (len(x), _TYPES.index(x.dtype)))
        counts = [int(each[0]) for each in of_ranks]
        # No rows often have the default type, which says nothing.
        types = [_TYPES[int(each[1])] for each in of_ranks if each[0]] or [x.dtype]
        dtype = functools.reduce(torch.promote_types, types)
        padded = torch.zeros((max(counts), *x.shape[1:]), dtype=dtype, device=self._device)
        padded[: len(x)] = x.detach()
        found = [padded] * self.size
        if padded.numel():
            self.traffic.gathered += _bytes(padded)
            found = self._gathered(padded)
        return [part[:n].to(x.device) for part, n in zip(found, counts, strict=True)]

    def whole(self, x: Tensor) -> tuple[Tensor, slice]:
        """The rows of all ranks, one after the other, and the place of one's own.

        Differentiable: in the backward pass, which all ranks have to make, each gets the derivative
        of the sum over the ranks.
        """
        parts = self.rows(x)
        start = sum(map(len, parts[: self.rank]))
        joined, own = torch.cat(parts), slice(start, start + len(x))
        if torch.is_grad_enabled() and x.requires_grad:
            self.has_joined = True
            joined = _Joined.apply(x, joined, own, self)  # type: ignore[no-untyped-call]
        return joined, own

    def texts(self, own: str) -> list[str]:
        """A text of every rank, cut off after 2,048 bytes."""
        self._meet(_TEXTS, 0)
        return self._texts(own)

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Give all ranks the values of the first one, in place."""
        self._meet(_ROWS, sum(map(_bytes, tensors)))
        source = distributed.get_global_rank(self._group, 0)
        for x in tensors:
            # As bytes: not every backend sends every type.
            values = x.detach().contiguous().reshape(-1)
            message = values.view(torch.uint8).to(self._device)

            def give(message: Tensor = message) -> None:
                distributed.broadcast(message, source, group=self._group)

            if message.numel():
                self.traffic.gathered += _bytes(message)
                self._exchange(give)
            with torch.no_grad():
                x.copy_(message.to(x.device).view(x.dtype).view(x.shape))

    # -- what one rank tells all ----------------------------------------------------------------

    def agree(self) -> None:
        """Go on together.

        Raises:
            AttemptError: another rank gives up what is tried.
        """
        self._meet(_NUMBERS, 0)

    def give_up(self, reason: str) -> None:
        """Tell the others that what is tried does not work here: they raise AttemptError."""
        self._tell(_GIVES_UP, reason)

    @contextmanager
    def together(self) -> Iterator[None]:
        """A step that all ranks make; what one of them raises, all of them hear of.

        Raises:
            RankError: another rank raised an error.
        """
        self.has_joined = False
        try:
            with held(), sharing(self):
                yield
            self._meet(_END, 0)
        except RankError:
            raise
        except Exception as error:
            with suppress(RankError):  # the error itself says more than that nobody listens
                numbers = isinstance(error, (FloatingPointError, NotFiniteError))
                self._tell(_NOT_FINITE if numbers else _FAILED, _told(error))
            raise

    def _tell(self, state: float, reason: str) -> None:
        self._header(_END, 0, state, ())
        self._texts(reason)

    def _meet(self, kind: int, size: int, own: Sequence[float] = ()) -> list[list[float]]:
        """Exchange headers, and return the numbers in them."""
        table = self._header(kind, size, _FINE, own)
        states = [row[2] for row in table]
        if any(states):
            said = self._texts("")
            who = [i for i, state in enumerate(states) if state]
            told = "; ".join(f"rank {i} of {self.size}: {said[i]}" for i in who)
            stopped = {state for state in states if state in (_FAILED, _NOT_FINITE)}
            if not stopped:
                raise AttemptError(told)
            error = RankError(
                f"this outer step ends on rank {self.rank} because another process can't go on: "
                f"{told}"
            )
            error.not_finite = stopped == {_NOT_FINITE}
            raise error
        if len({(kind, size, user) for kind, size, _, user, *_ in table}) > 1:
            doing = "; ".join(
                f"rank {i}: {_KINDS[int(kind)]} of size {size:.0f}, for wrap(...) number {user:.0f}"
                for i, (kind, size, _, user, *_) in enumerate(table)
            )
            raise RankError(
                f"the processes are not at the same place of an outer step ({doing}). All of them "
                "must make the same outer steps of the same problem: the same model, losses, "
                "weighter, optimizer, inner parameters and solver, and outer_backward(...) the "
                "same number of times, as well as rw.loss(...) where the weighter compares samples"
            )
        return [row[_OWN:] for row in table]

    def _header(
        self, kind: int, size: int, state: float, own: Sequence[float]
    ) -> list[list[float]]:
        self.traffic.headers += 1
        values = [float(kind), float(size), state, float(self._user), *own]
        values += [0.0] * (_HEADER - len(values))
        header = torch.tensor(values, dtype=torch.float64, device="cpu")
        return [part.tolist() for part in self._gathered(header)]

    def _texts(self, own: str) -> list[str]:
        self.traffic.gathered += _TEXT
        # A name of a file may hold what UTF-8 does not know.
        data = own.encode(errors="backslashreplace")[:_TEXT]
        padded = list(data.ljust(_TEXT, b"\0"))
        found = self._gathered(torch.tensor(padded, dtype=torch.uint8, device="cpu"))
        return [bytes(x.tolist()).rstrip(b"\0").decode(errors="replace") for x in found]

    def _gathered(self, x: Tensor) -> list[Tensor]:
        message = x.to(self._device)
        found = [torch.empty_like(message) for _ in range(self.size)]
        self._exchange(lambda: distributed.all_gather(found, message, group=self._group))
        return found

    def _exchange(self, exchange: Callable[[], Any]) -> None:
        try:
            exchange()
        except RuntimeError as error:
            raise RankError(
                f"rank {self.rank} of {self.size} has lost the other processes in an outer step "
                f"({_reason(error)}): one of them ended or was killed, or it "
                "did not come to this outer step in time. Its own output tells why; every process "
                "must call wrap(...) and outer_backward(...) equally often, and rw.loss(...) too "
                "where the weighter compares samples"
            ) from error


class _Joined(torch.autograd.Function):
    """The rows of all ranks as a function of one's own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, joined: Tensor, own: slice, ranks: Ranks) -> Tensor:
        ctx.own, ctx.ranks, ctx.dtype = own, ranks, x.dtype
        return joined.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (grad,) = grads
        # A copy: autograd may give one tensor as the gradient of several functions.
        total: Tensor = ctx.ranks.total(grad.flatten().clone()).view(grad.shape)
        return total[ctx.own].to(ctx.dtype), None, None, None


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()


def _told(error: Exception) -> str:
    """An error in words, whatever it is."""
    name = type(error).__name__
    try:
        return f"{name}: {str(error).strip() or repr(error)}"
    except Exception as unprintable:
        return f"{name}, whose message can't be made ({type(unprintable).__name__})"


def _reason(error: BaseException) -> str:
    """The first line of an error, without the place in a backend's source that it begins with."""
    return re.sub(r"^\[[^]]*\]\s*", "", str(error).splitlines()[0])[:200]


def _timeout(group: Any) -> timedelta | None:
    """The time after which exchanges of a group fail; ``None`` where it does not say."""
    for device in ("cpu", "cuda"):
        try:
            found = group._get_backend(torch.device(device)).options._timeout
        except (RuntimeError, AttributeError):
            continue
        if isinstance(found, timedelta):
            return found
    return None
