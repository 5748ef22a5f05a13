"""Try any number of damaged inputs; the exit code is 1 if anything but a documented outcome came.

python -m tests.fuzz [--inputs 1000000] [--seed 0] [--only TARGET ...] [--index N]

Batches run in processes of their own, so that one that ends the interpreter is seen. An input is
drawn from the seed, the target and its index: ``--only TARGET --index N`` tries one again.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "cdr"))

import pyarrow as pa
import torch

from fuzz.targets import TARGETS, outcome

BATCH = 1000
PATIENCE = 120  # seconds without a further input
SHOWN = 3  # mistakes of a kind
TOLD = 60  # seconds between two lines on the progress
_CLEAN = ("read", "refused")
# Files are small, and written in a thousandth of the time there.
_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def work(name: str, seed: int, start: int, stop: int, place: Path) -> None:
    """Try some inputs, and note each before and all of them at the end."""
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    folder = place / "input"
    folder.mkdir()
    counts: Counter[str] = Counter()
    told: dict[str, list[tuple[int, str]]] = {}
    slowest = (0.0, -1)
    with (place / "at").open("wb", buffering=0) as at:
        for index in range(start, stop):
            at.seek(0)
            at.write(index.to_bytes(8, "big"))
            began = time.perf_counter()
            kind, text = outcome(TARGETS[name], Random(f"{seed}:{name}:{index}"), folder)
            slowest = max(slowest, (time.perf_counter() - began, index))
            counts[kind] += 1
            if kind not in _CLEAN:
                told.setdefault(kind, []).append((index, text))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    report = {"counts": counts, "told": told, "slowest": slowest, "memory": memory}
    (place / "report.json").write_text(json.dumps(report), encoding="utf-8")


def tried(name: str, seed: int, start: int, stop: int) -> list[dict[str, object]]:
    """The reports of the processes that a batch takes: one, or more where some of them die."""
    reports: list[dict[str, object]] = []
    context = multiprocessing.get_context("fork")
    while start < stop:
        with tempfile.TemporaryDirectory(prefix="fuzz", dir=_MEMORY) as folder:
            place = Path(folder)
            process = context.Process(target=work, args=(name, seed, start, stop, place))
            process.start()
            last = -1
            while process.is_alive():
                process.join(PATIENCE)
                at = _place_of(place)
                if process.is_alive() and at == last:
                    process.kill()
                    process.join()
                last = at
            if (place / "report.json").exists():
                reports.append(json.loads((place / "report.json").read_text(encoding="utf-8")))
                return reports
            index = _place_of(place)
            kind = "HANGS" if process.exitcode == -9 else "CRASH"
            told = {kind: [(index, f"exit code {process.exitcode}")]}
            reports.append({"counts": {kind: 1}, "told": told, "slowest": (0, -1), "memory": 0})
            start = max(index, start) + 1
    return reports


def _batches(each: dict[str, int]) -> list[tuple[str, int]]:
    return [(name, start) for name, count in each.items() for start in range(0, count, BATCH)]


def _place_of(place: Path) -> int:
    try:
        return int.from_bytes((place / "at").read_bytes(), "big")
    except OSError:
        return -1


def main() -> int:
    """Try the inputs asked for and print what became of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=20_000, help="over all targets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--index", type=int, help="this input alone, in this process")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no batch later")
    options = parser.parse_args()
    if options.index is not None:
        for name in options.only:
            with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
                random = Random(f"{options.seed}:{name}:{options.index}")
                print(name, *outcome(TARGETS[name], random, Path(folder)), sep="\n  ")
        return 0
    shares = sum(TARGETS[name].share for name in options.only)
    each = {n: math.ceil(options.inputs * TARGETS[n].share / shares) for n in options.only}
    totals: dict[str, Counter[str]] = {name: Counter() for name in options.only}
    shown: Counter[tuple[str, str]] = Counter()
    memory, slowest, began = 0, (0.0, "", -1), time.monotonic()
    seconds: Counter[str] = Counter()
    lately = began
    for name, start in sorted(_batches(each), key=lambda batch: batch[1] / each[batch[0]]):
        if time.monotonic() - began <= options.seconds:
            since = time.monotonic()
            for report in tried(name, options.seed, start, min(start + BATCH, each[name])):
                totals[name].update(report["counts"])  # type: ignore[arg-type]
                memory = max(memory, int(report["memory"]))  # type: ignore[call-overload]
                took, index = report["slowest"]  # type: ignore[misc]
                slowest = max(slowest, (took, name, index))
                for kind, several in report["told"].items():  # type: ignore[attr-defined]
                    for index, text in several:
                        shown[name, kind] += 1
                        if shown[name, kind] <= SHOWN:
                            print(f"{kind} {name} {index}: {text}", flush=True)
            now = time.monotonic()
            seconds[name] += now - since  # type: ignore[assignment]
            if now - lately >= TOLD:
                lately, num = now, sum(counts.total() for counts in totals.values())
                done = f"{num:,} of {sum(each.values()):,} inputs in {now - began:.0f} s"
                print(done, file=sys.stderr, flush=True)
    kinds = [*_CLEAN, *sorted({k for c in totals.values() for k in c} - set(_CLEAN))]
    rows = [(name, c.total(), *(c[k] for k in kinds)) for name, c in totals.items()]
    rows.append(("all", *(sum(column) for column in list(zip(*rows, strict=True))[1:])))
    print("".join(f"{cell:>14}" for cell in ("target", "inputs", *kinds)))
    for row in rows:
        print("".join(f"{cell:>14,}" if isinstance(cell, int) else f"{cell:>14}" for cell in row))
    print(
        f"{time.monotonic() - began:.0f} s; at most {memory / 2**20:.0f} MiB of memory; the "
        f"slowest took {slowest[0]:.1f} s ({slowest[1]} {slowest[2]})"
    )
    print(
        "inputs a second: "
        + ", ".join(
            f"{name} {totals[name].total() / max(spent, 1e-9):.0f}"
            for name, spent in seconds.items()
        )
    )
    return int(
        any(counts[kind] for counts in totals.values() for kind in counts.keys() - {*_CLEAN})
    )


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.exit(main())
