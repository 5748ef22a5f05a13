"""The processes that ``torchrun`` starts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from cdr.common import ALONE, Processes
from cdr.runs.devices import usable_device

# The others wait while the first one reads the data for the first time, which may take long.
# That a process has ended is noticed at once.
_TIMEOUT = timedelta(minutes=30)


@contextmanager
def launched(device: str) -> Iterator[tuple[Processes, str]]:
    """The processes that train together, and the device of this one.

    They are those that ``torchrun`` has started, or those of a default group that the caller has
    made. Otherwise this process is alone.

    Args:
        device: The option ``--device``. With "cuda", each process of a machine takes a GPU of its
            own, by its LOCAL_RANK.

    Raises:
        ValueError: The device cannot be used here, or there are fewer GPUs than processes.
    """
    if dist.is_initialized():
        yield _joined(), usable_device(device)
        return
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
        yield ALONE, usable_device(device)
        return
    own = _own_device(device)
    # The short messages of every operation lie on the CPU.
    backend = "cpu:gloo,cuda:nccl" if own.startswith("cuda") else "gloo"
    dist.init_process_group(backend, timeout=_TIMEOUT)
    try:
        yield _joined(), own
    finally:
        dist.destroy_process_group()


def _joined() -> Processes:
    """The default group's processes, with a group of their own: others may use the default one."""
    return Processes(dist.new_group())


def _own_device(device: str) -> str:
    """The device of this process among those of its machine."""
    kind, _, number = device.partition(":")
    place, beside = (int(os.environ.get(f"LOCAL_{n}", "0")) for n in ("RANK", "WORLD_SIZE"))
    if number:
        raise ValueError(
            f"--device {device}: under torchrun each process takes a GPU of its own; give "
            f"--device {kind}, and choose GPUs by CUDA_VISIBLE_DEVICES"
        )
    if usable_device(device) == "cpu":
        return "cpu"
    if torch.cuda.device_count() < beside:
        raise ValueError(
            f"--device {device}: torchrun started {beside} processes on a machine with "
            f"{torch.cuda.device_count()} GPUs, and each takes one; lower --nproc-per-node, or "
            "give --device cpu"
        )
    own = torch.device("cuda", place)
    torch.cuda.set_device(own)
    return str(own)
