"""Layers and operations: the mode of Hessian products, the error and the time of each.

    python benchmarks/operations.py [--json FILE]

For each operation, conjugate gradients compute one hypergradient of a small model that contains it.
The reference is a Hessian from fourth-order differences of float64 gradients, which uses no second
derivatives. Times are medians of single-threaded float32 outer steps after the first one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import textwrap
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from benchmarks.catalogue.operations import OPERATIONS, Operation
from benchmarks.catalogue.problems import relative_error

REPEATS = 7


def measured(operation: Operation) -> dict[str, Any]:
    """One row: the reason of a refusal, or the mode, the errors and the time."""
    try:
        expected, damping = operation.reference()
        double = operation.hypergradient(damping=damping)
        single = operation.hypergradient(torch.float32, damping)
    except ValueError as error:
        return {"mode": "refused", "words": str(error)}
    if not double.info.trustworthy:
        return {"mode": "not trusted", "words": double.info.message}
    return {
        "mode": double.info.hvp_mode,
        "error": relative_error(double.influence, expected),
        "error_float32": relative_error(single.influence.double(), expected),
        "num_hvps": single.info.num_hvps,
        "milliseconds": milliseconds(operation, damping),
    }


def milliseconds(operation: Operation, damping: float) -> float:
    """The time of one outer step, after a first one."""
    rw = operation.wrapped(torch.float32, damping)
    train, dev = operation.batches(torch.float32)
    times = []
    with operation.around():
        for _ in range(REPEATS + 1):
            start = time.perf_counter()
            rw.hypergradient(train, dev)
            times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the table to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # the table shows the outcomes
    print(f"torch {torch.__version__}, 1 thread\n")
    print("| | mode | error in float64 | in float32 |")
    print("| --- | --- | ---: | ---: |")
    rows = {}
    for name, operation in OPERATIONS.items():
        row = rows[name] = measured(operation)
        errors = f"{row['error']:.0e} | {row['error_float32']:.0e}" if "error" in row else "– | –"
        print(f"| {name} | `{row['mode']}` | {errors} |", flush=True)
    told = {name: row["words"] for name, row in rows.items() if "words" in row}
    print(
        f"\n{len(rows) - len(told)} of {len(rows)} are served. The others, in the library's words:"
    )
    for name, words in told.items():
        print(textwrap.fill(f"{name}: {words}", 100, initial_indent="- ", subsequent_indent="  "))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
