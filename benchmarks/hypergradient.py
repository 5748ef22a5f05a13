"""Time and memory of one hypergradient: ours, plain autograd's and TorchOpt's.

    python benchmarks/hypergradient.py [--sweep sizes terms tables] [--rows N ...] [--quick]
                                       [--threads 1] [--device cpu] [--json FILE]

All methods use the same model, batches, weighter and Neumann series. "plain autograd" is
benchmarks/_lorraine.py. "TorchOpt" is its `custom_root` with `solve_inv(ns=True)`, where it is
installed. There are three sweeps: over the number of parameters of a dense network, over the number
of terms, and over the rows of the largest table of the recommendation model of examples/cdr.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import reweight
from benchmarks import _lorraine
from benchmarks._measure import in_fresh_process, interleaved, machine, peak_mib, ratio, seconds_of
from benchmarks._peers import with_torchopt
from benchmarks._peers.agreement import apart
from benchmarks._peers.cells import BATCH, DIM, Case, dense, tables
from benchmarks._peers.method import STEP_SIZE, Gradient, Setting
from reweight import ImplicitHypergradient, Neumann

NUM_TERMS = 3

LEGEND = """\
products  with the Hessian, counted. The series makes as many as it has terms, by every method
          (TorchOpt's maxiter is the number of terms). Ours makes one more: the residual of its
          verdict, in the pass that gives the influences; and up to three more where that residual
          is small enough to be trusted. "auto" needs one where there are no terms.
ms        of the fastest call once all is warm; x: how many times as long as "reweight, fixed",
          the median over rounds in which every method ran once.
MiB       resident memory at the peak of one call beyond what was there before it, in a fresh
          process; on a GPU, memory of its allocator.
first     the same of a process's first call. Ours then compares second derivatives with
          differences of gradients in float64, once; of a table, in the rows that are read.
apart     relative difference from plain autograd's hypergradient, float32. "auto" chooses another
          step size, and so has another answer."""


# -- methods -------------------------------------------------------------------------------------

KINDS: dict[str, Callable[[int, torch.device], Case]] = {"dense": dense, "tables": tables}


def ours(case: Case, num_terms: int, step_size: Any = STEP_SIZE) -> Gradient:
    # The models are untrained and their Hessians indefinite, which the verdict warns about.
    warnings.filterwarnings("ignore", message="not an exact hypergradient")
    rw = reweight.wrap(
        case.model,
        case.weighter,
        case.losses,
        case.outer_loss,
        hypergradient=ImplicitHypergradient(Neumann(num_terms, step_size)),
    )
    return lambda: list(rw.hypergradient(case.batch, case.dev_batch).grads.values())


def ours_auto(case: Case, num_terms: int) -> Gradient:
    return ours(case, num_terms, "auto")


def plain(case: Case, num_terms: int) -> Gradient:
    params, hparams = list(case.model.parameters()), list(case.weighter.parameters())
    return lambda: _lorraine.hypergradient(
        case.inner, case.outer, params, hparams, num_terms, STEP_SIZE
    )


def torchopt(case: Case, num_terms: int) -> Gradient:
    return with_torchopt.hypergradient(case, Setting("", "series", num_terms))


METHODS: dict[str, Callable[[Case, int], Gradient]] = {
    "reweight, fixed": ours,
    "reweight, auto": ours_auto,
    "plain autograd": plain,
    "TorchOpt": torchopt,
}
OURS = ("reweight, fixed", "reweight, auto")


# -- measurements --------------------------------------------------------------------------------


@contextmanager
def counted(case: Case) -> Iterator[list[int]]:
    """Count products with the Hessian: backward passes with a vector, not to the weighter.

    ``torch.func`` calls the same function.
    """
    found, grad = [0], torch.autograd.grad
    hparams = [p.shape for p in case.weighter.parameters()]

    def noted(outputs: Any, inputs: Any, grad_outputs: Any = None, *rest: Any, **more: Any) -> Any:
        inputs = [inputs] if isinstance(inputs, Tensor) else list(inputs)
        shapes = [getattr(x, "shape", None) for x in inputs]  # gradient edges have none
        found[0] += grad_outputs is not None and shapes != hparams
        return grad(outputs, inputs, grad_outputs, *rest, **more)

    with mock.patch.object(torch.autograd, "grad", noted):
        yield found


def memory(
    kind: str, size: int, method: str, num_terms: int, device: torch.device, threads: int
) -> dict[str, float]:
    """The memory of the first and of a later call in MiB, and the milliseconds of the first."""
    torch.set_num_threads(threads)
    METHODS[method](KINDS[kind](1_000, device), 1)()  # loads modules that are loaded on first use
    gradient = METHODS[method](KINDS[kind](size, device), num_terms)
    took: list[float] = []
    first = peak_mib(lambda: took.append(seconds_of(gradient, device)), device)
    return {"first_ms": 1e3 * took[0], "first_mib": first, "mib": peak_mib(gradient, device)}


def compare(
    kind: str,
    size: int,
    num_terms: int,
    methods: Sequence[str],
    device: torch.device,
    seconds: float,
) -> Iterator[dict[str, Any]]:
    """Yield one row per method."""
    case = KINDS[kind](size, device)
    calls = {name: METHODS[name](case, num_terms) for name in methods}
    found = {name: call() for name, call in calls.items()}
    products = {}
    for name, call in calls.items():
        with counted(case) as number:
            call()
        products[name] = number[0]
    times = interleaved(calls, device, seconds)
    threads = torch.get_num_threads()
    for name in methods:
        same = name != "reweight, auto" and "plain autograd" in methods
        yield {
            "kind": kind,
            "size": size,
            "num_terms": num_terms,
            "method": name,
            "products": products[name],
            "ms": 1e3 * min(times[name]),
            "ratio": ratio(times[name], times["reweight, fixed"]),
            "apart": apart(found[name], found["plain autograd"]) if same else None,
            **in_fresh_process(memory, kind, size, name, num_terms, device, threads),
        }


def show(rows: Iterator[dict[str, Any]], label: str) -> list[dict[str, Any]]:
    kept = []
    for row in rows:
        head = label.format(**row) if not kept else ""
        difference = "" if row["apart"] is None else f"{row['apart']:.0e}"
        print(
            f"{head:>13}  {row['method']:<15} {row['products']:8} {row['ms']:9.2f} "
            f"{row['ratio']:6.2f} {row['mib']:8.1f} {row['first_ms']:9.0f} {row['first_mib']:9.1f} "
            f"{difference:>7}",
            flush=True,
        )
        kept.append(row)
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sweeps = ["sizes", "terms", "tables"]
    parser.add_argument("--sweep", nargs="+", choices=sweeps, default=sweeps)
    parser.add_argument(
        "--rows",
        nargs="+",
        type=int,
        help="of the table, one by one; 100 million of them need 4 GB for each copy (default: "
        "10,000, 134,000, 1 and 10 million)",
    )
    parser.add_argument(
        "--others-up-to",
        type=int,
        default=1_000_000,
        help="rows of the largest table that the other methods are measured on",
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--quick", action="store_true", help="smaller sizes and less repetition")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device, quick = arguments.device, arguments.quick
    seconds = 1.0 if quick else 6.0
    methods = list(METHODS)
    try:
        import torchopt
    except ImportError:
        methods.remove("TorchOpt")
        print("TorchOpt is not installed: pip install torchopt for its rows")
    else:
        print(f"TorchOpt {torchopt.__version__}")
    print(machine(device), f"\n{LEGEND}", sep="\n")

    sizes = [10_000, 100_000] if quick else [10_000, 100_000, 1_000_000, 10_000_000]
    terms = [0, 1, 3] if quick else [0, 1, 3, 10, 30]
    num_rows = arguments.rows or [10_000, 134_000] + [1_000_000, 10_000_000] * (not quick)
    medium = sizes[1] if quick else 1_000_000
    settings: dict[str, tuple[str, str, list[tuple[str, int, int]]]] = {
        "sizes": (
            f"By the parameters of a dense network; {NUM_TERMS} terms, batches of {BATCH}",
            "{size:,}",
            [("dense", size, NUM_TERMS) for size in sizes],
        ),
        "terms": (
            f"By the terms of the series; a dense network of {medium:,} parameters",
            "{num_terms}",
            [("dense", medium, num_terms) for num_terms in terms],
        ),
        "tables": (
            f"By the rows of CoNet's source table, {DIM} wide; {NUM_TERMS} terms",
            "{size:,}",
            [("tables", size, NUM_TERMS) for size in num_rows],
        ),
    }
    rows: list[dict[str, Any]] = []
    for sweep in arguments.sweep:
        title, label, points = settings[sweep]
        print(
            f"\n{title}\n\n{'':13}  {'':15} {'products':>8} {'ms':>9} {'x':>6} {'MiB':>8} ", end=""
        )
        print(f"{'first ms':>9} {'first MiB':>9} {'apart':>7}")
        for kind, size, num_terms in points:
            alone = kind == "tables" and size > arguments.others_up_to
            chosen = OURS if alone else methods
            rows += show(compare(kind, size, num_terms, chosen, device, seconds), label)
    if differences := [row["apart"] for row in rows if row["apart"] is not None]:
        print("\nLargest relative difference between two hypergradients of one series: ", end="")
        print(f"{max(differences):.1e}")
    if arguments.json:
        report = {"machine": machine(device), "rows": rows}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
