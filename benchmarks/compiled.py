"""Time of one hypergradient by a compiled program, eagerly, and by plain autograd.

    python benchmarks/compiled.py [--sizes N ...] [--threads 1] [--device cpu] [--json FILE]

The dense network, batches and weighter of benchmarks/hypergradient.py. Compiling takes a minute or
two for each size and solver.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import reweight
from benchmarks._measure import interleaved, machine, ratio, seconds_of
from benchmarks.hypergradient import STEP_SIZE, Case, Gradient, apart, dense, plain
from reweight import Identity, ImplicitHypergradient, Neumann

SOLVERS = {
    "Identity()": Identity(),
    f"Neumann(3, {STEP_SIZE})": Neumann(3, STEP_SIZE),
    "Neumann(3)": Neumann(3),
}
LEGEND = """\
ms        of the fastest call once all is warm, its residual not measured; x: how many times as
          long as the eager step, the median over rounds in which every method ran once.
compile   seconds of the first outer step, in which the program is compiled.
apart     relative difference from the eager step, float32."""


def ours(case: Case, solver: Any, compile: bool) -> Gradient:
    strategy = ImplicitHypergradient(solver, compile=compile, verdict_every=10**9)
    rw = reweight.wrap(
        case.model, case.weighter, case.losses, case.outer_loss, hypergradient=strategy
    )
    return lambda: list(rw.hypergradient(case.batch, case.dev_batch).grads.values())


def compare(size: int, device: torch.device, seconds: float) -> Iterator[dict[str, Any]]:
    """Yield one row per solver and method."""
    for label, solver in SOLVERS.items():
        case = dense(size, device)
        calls = {name: ours(case, solver, name == "compiled") for name in ("eager", "compiled")}
        if label == f"Neumann(3, {STEP_SIZE})":
            calls["plain autograd"] = plain(case, 3)
        first = {name: seconds_of(call, device) for name, call in calls.items()}
        found = {name: call() for name, call in calls.items()}
        times = interleaved(calls, device, seconds, rounds=30)
        for name in calls:
            yield {
                "size": size,
                "solver": label,
                "method": name,
                "ms": 1e3 * min(times[name]),
                "ratio": ratio(times[name], times["eager"]),
                "first_s": first[name],
                "apart": apart(found[name], found["eager"]),
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", type=int, default=[10_000, 1_000_000])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore", message="not an exact hypergradient")
    warnings.filterwarnings("ignore", message="the outer step was compiled")
    print(machine(arguments.device), f"\n{LEGEND}\n", sep="\n")
    print(
        f"{'parameters':>10}  {'solver':<15} {'method':<15} {'ms':>8} {'x':>6} {'compile':>8} apart"
    )
    rows = []
    for size in arguments.sizes:
        for row in compare(size, arguments.device, seconds=6.0):
            compiling = f"{row['first_s']:.1f}" if row["method"] == "compiled" else ""
            print(
                f"{size:>10,}  {row['solver']:<15} {row['method']:<15} {row['ms']:8.2f} "
                f"{row['ratio']:6.2f} {compiling:>8} {row['apart']:.0e}",
                flush=True,
            )
            rows.append(row)
    if arguments.json:
        report = {"machine": machine(arguments.device), "rows": rows}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
