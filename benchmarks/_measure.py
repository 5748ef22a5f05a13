"""Measurement of the time and memory of calls."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

_STATUS = Path("/proc/self/status")
_MIB = 2**20


def machine(device: torch.device) -> str:
    """A description of the machine."""
    cpu = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), cpu)
    where = f"{cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} thread(s)"
    if device.type == "cuda":
        where += f", {torch.cuda.get_device_name(device)}"
    return f"{where}, torch {torch.__version__}"


def interleaved(
    calls: dict[str, Callable[[], Any]],
    device: torch.device,
    seconds: float,
    rounds: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each call in each round. Warm up all calls before.

    Every round runs all calls, so that other load on the machine affects all of them equally. Each
    round starts with another call. There are at least ``rounds`` rounds, and more until ``seconds``
    have passed. With ``time.process_time`` as the clock, the time is the processor's, in which
    other load on the machine does not count.
    """
    names, times = list(calls), {name: [] for name in calls}
    end = time.perf_counter() + seconds
    done = 0
    while done < rounds or time.perf_counter() < end:
        first = done % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(seconds_of(calls[name], device, clock))
        done += 1
    return times


def seconds_of(
    call: Callable[[], Any],
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    _synchronize(device)
    start = clock()
    call()
    _synchronize(device)
    return clock() - start


def ratio(times: list[float], base: list[float]) -> float:
    """The median over the rounds of the ratio of two times."""
    return statistics.median(a / b for a, b in zip(times, base, strict=True))


def peak_mib(call: Callable[[], Any], device: torch.device) -> float:
    """The peak memory during the call, minus the memory in use before it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        _synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / _MIB
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # freed memory stays resident until it is returned
    if not _reset_peak():
        # This shows only what exceeds the highest peak so far.
        before = _largest_ever()
        call()
        return (_largest_ever() - before) / _MIB
    before = _status("VmRSS")
    call()
    return (_status("VmHWM") - before) / _MIB


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """``function(*arguments)`` in a new interpreter."""
    # By default the C library raises these limits when large blocks are freed. It then no longer
    # returns later blocks to the system.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = os.environ["MALLOC_TRIM_THRESHOLD_"] = str(2**16)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _reset_peak() -> bool:
    """Reset the peak to the memory resident now; False if the kernel does not allow it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        _status("VmHWM")
    except OSError:
        return False
    return True


def _status(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_STATUS} has no field {field}")


def _largest_ever() -> int:
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024
