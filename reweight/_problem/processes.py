"""What the processes of an outer step have to have in common."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, distributed, nn

from reweight._curvature import MODES, Mode
from reweight._tensors import AttemptError, RankError, Ranks, Tree, digest, shared
from reweight.verdict import WAYS, Comparison, Way

_Told = tuple[list[str], Comparison | None]

# Whether the parameters are equal on all processes is looked at in the first outer step, and after
# this many.
CHECK_EVERY = 20
# So much of the reason why nothing was compared is told to other processes.
_FAILURE = 500
_INTEGER = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# So many values are summed up at a time, as integers of 64 bits.
_CHUNK = 1 << 20


def ranks_of(process_group: Any) -> Ranks | None:
    """The processes that ``wrap`` was told of; ``None`` if this one is alone.

    Args:
        process_group: ``"auto"``: the default group, where one is initialised; ``None``: no group.

    Raises:
        TypeError: something else.
        ValueError: a group without this process.
    """
    if process_group is None:
        return None
    if isinstance(process_group, str) and process_group == "auto":
        if not (distributed.is_available() and distributed.is_initialized()):
            return None
        process_group = distributed.group.WORLD
    if not distributed.is_available() or not isinstance(process_group, distributed.ProcessGroup):
        # What new_group returns in the processes that it leaves out is a number.
        if distributed.is_available() and process_group == distributed.GroupMember.NON_GROUP_MEMBER:
            raise ValueError(
                "process_group does not hold this process, whose samples it is to share: call "
                "wrap(...) with a group of which this process is a member, or with "
                "process_group=None"
            )
        raise TypeError(
            f'process_group must be "auto", None or a torch.distributed.ProcessGroup, got '
            f"{process_group!r}; of a DeviceMesh pass mesh.get_group()"
        )
    return None if distributed.get_world_size(process_group) < 2 else Ranks(process_group)


def check_alone() -> None:
    """Raise where other processes have joined this one, which was alone when it called ``wrap``."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    if (size := distributed.get_world_size()) > 1:
        raise RuntimeError(
            f"torch.distributed was initialised after wrap(...), so each of the {size} processes "
            "would learn weights of its own: call init_process_group(...) before wrap(...), or "
            "pass process_group=None to wrap if that is meant"
        )


def start_alike(weighter: nn.Module, ranks: Ranks) -> None:
    """Give the weighter the values that it has on the first process."""
    ranks.broadcast([*weighter.parameters(), *weighter.buffers()])


@contextmanager
def inner_modules(parts: Iterable[nn.Module]) -> Iterator[None]:
    """Let ``DistributedDataParallel`` modules be the modules that they hold.

    Their own passes expect one backward pass each, and exchange buffers; outer steps make as many
    passes as they need, and not the same ones on all processes.
    """
    parallel = [p for p in parts if isinstance(p, nn.parallel.DistributedDataParallel)]
    for part in parallel:
        vars(part)["forward"] = part.module
    try:
        yield
    finally:
        for part in parallel:
            vars(part).pop("forward", None)


def check_passes(parts: Iterable[nn.Module]) -> None:
    """Raise for modules that exchange values in every pass."""
    for part in parts:
        if isinstance(part, nn.SyncBatchNorm) and part.training:
            raise TypeError(
                "the model has SyncBatchNorm, which exchanges statistics in every pass, and the "
                "passes of an outer step are not the same ones on all processes: use BatchNorm, "
                "or LayerNorm or GroupNorm, or call .eval() on these modules for outer steps"
            )


def learn_of_others(ruled_out: dict[Mode, BaseException], no_way: dict[Way, str]) -> None:
    """Note the modes, and the ways of first-order steps, that another process has ruled out."""
    group = shared()
    if group is None:
        return
    flags = [
        *(float(mode in ruled_out) for mode in MODES),
        *(float(way in no_way) for way in WAYS),
    ]
    where = [
        [rank for rank, each in enumerate(of_ranks) if each]
        for of_ranks in zip(*group.numbers(*flags), strict=True)
    ]
    for mode, ranks in zip(MODES, where[: len(MODES)], strict=True):
        if ranks:
            ruled_out.setdefault(mode, RuntimeError(f"it does not work on rank {ranks[0]}"))
    for way, ranks in zip(WAYS, where[len(MODES) :], strict=True):
        if ranks:
            no_way.setdefault(way, f"it does not work on rank {ranks[0]}")


def rejected_by_any(reason: str | None) -> str | None:
    """Why what is tried does not work, on this process or on another one."""
    group = shared()
    if group is None:
        return reason
    if reason is not None:
        group.give_up(reason)
        return reason
    try:
        group.agree()
    except AttemptError as error:
        return str(error)
    return None


def due_on_any(measure: bool, along: float | None) -> tuple[bool, float | None]:
    """What the verdict is to measure: whatever is due on any process.

    Args:
        measure: whether the residual is due.
        along: the curvature that was measured last; ``None`` if it is due.
    """
    group = shared()
    if group is None:
        return measure, along
    of_ranks = group.numbers(float(measure), float(along is None), along or 0.0)
    if any(each[1] for each in of_ranks):
        along = None
    return any(each[0] for each in of_ranks), along


def of_all(*own: float) -> list[float]:
    """The largest of each number over all processes; NaN where one is."""
    group = shared()
    if group is None:
        return list(own)
    of_ranks = zip(*group.numbers(*own), strict=True)
    return [max(each, key=lambda x: (x != x, x)) for each in of_ranks]


def told_by_any(caveats: Sequence[str], comparison: Comparison | None) -> _Told:
    """What is wrong with a result, on this process or on another one, and what was compared.

    Args:
        caveats: what is wrong on this process.
        comparison: the last one of this process; that of another process where it has failed.
    """
    group = shared()
    if group is None:
        return list(caveats), comparison
    failure = "" if comparison is None else comparison.failure[:_FAILURE]
    own = "\n".join((failure, "; ".join(caveats)))
    if len({each[0] for each in group.numbers(digest(own.encode(errors="replace")))}) == 1:
        return list(caveats), comparison
    others = [(i, *text.split("\n", 1)) for i, text in enumerate(group.texts(own)) if text != own]
    told = dict.fromkeys(f"on rank {i}, {text}" for i, _, text in others if text)
    failed = [f"on rank {i}, {failure}" for i, failure, _ in others if failure]
    if comparison is not None and not comparison.failure and failed:
        comparison = replace(comparison, age=None, failure=failed[0])
    return [*caveats, *told], comparison


def unequal(theta: Tree, phi: Tree, model: nn.Module, stated: Mapping[str, object]) -> list[str]:
    """Which values and module modes are not the same on all processes, in words.

    Args:
        theta: the inner parameters.
        phi: the parameters of the weighter.
        model: the model.
        stated: what else the processes have to state alike, by its name.

    Raises:
        RankError: they state something else, so that their vectors do not fit together.
    """
    group = shared()
    if group is None:
        return []
    modes = [part.training for part in model.modules()]
    of_ranks = group.numbers(
        sum_of_bits(theta.values()),
        sum_of_bits(phi.values()),
        digest(repr(modes).encode()),
        # Without the addresses of objects.
        *(digest(re.sub("0x[0-9a-f]+", "", repr(x)).encode()) for x in stated.values()),
    )
    inner, outer, training, *others = (set(each) for each in zip(*of_ranks, strict=True))
    if differ := [name for name, each in zip(stated, others, strict=True) if len(each) > 1]:
        raise RankError(
            f"the processes have made different problems: they differ in {' and '.join(differ)}. "
            "Call wrap(...) with the same model, optimizer and settings everywhere. The order of a "
            "set is another one in each process, so it must not decide that of modules"
        )
    found = []
    if len(training) > 1:
        found.append(
            "modules of the model are in training mode on some processes and in evaluation mode on "
            "others: call model.train() or model.eval() on all of them"
        )
    if len(inner) > 1:
        found.append(
            "the inner parameters differ between the processes, as after steps with gradients that "
            "were not averaged: train the model in DistributedDataParallel, from the same start"
        )
    if len(outer) > 1:
        found.append(
            "the weighter's parameters differ between the processes: all of them have to make "
            "the same outer steps with the same outer optimizer, and nothing else may change them"
        )
    return found


def sum_of_bits(tensors: Iterable[Tensor]) -> float:
    """A checksum of values, exact in whatever order it is summed up."""
    total = 0
    for place, x in enumerate(tensors):
        data = x.detach()
        data = data.coalesce().values() if data.is_sparse else data
        if not data.numel():
            continue
        bits = data.contiguous().view(-1).view(_INTEGER[data.element_size()])
        for part in torch.split(bits, _CHUNK):
            wide = part.long()
            total += (2 * place + 1) * int((wide * (wide >> 7 | 1)).sum())
    return float(total % (1 << 48))
