"""Time and memory of one hypergradient: ours, plain autograd's and TorchOpt's.

    python benchmarks/hypergradient.py [--sweep sizes terms tables] [--rows N ...] [--quick]
                                       [--threads 1] [--device cpu] [--json FILE]

All methods use the same model, batches, weighter and Neumann series. "plain autograd" is
benchmarks/_lorraine.py. "TorchOpt" is its `custom_root` with `solve_inv(ns=True)`, and needs the
extra [bench]. There are three sweeps: over the number of parameters of a dense network, over the
number of terms, and over the rows of the largest table of the recommendation model of examples/cdr.
"""

from __future__ import annotations

import argparse
import json
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import reweight
from benchmarks import _lorraine
from benchmarks._measure import in_fresh_process, interleaved, machine, peak_mib, ratio, seconds_of
from cdr.data import Candidates, History, PairBatch
from cdr.models.conet import CoNet, CoNetOptions
from reweight import ImplicitHypergradient, Losses, Neumann

BATCH, HISTORY, DIM = 64, 50, 10
NUM_FEATURES, NUM_CLASSES = 64, 10
NUM_USERS, NUM_TARGET_ITEMS, NUM_CATEGORIES = 7_576, 11_567, 20  # of the example's first data set
STEP_SIZE, NUM_TERMS = 0.1, 3

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


@dataclass(frozen=True)
class Case:
    """The bilevel problem that all methods solve."""

    model: nn.Module
    weighter: reweight.SampleWeighter
    losses: Callable[[Any, Any], Losses]
    outer_loss: Callable[[Any, Any], Tensor]
    batch: Any
    dev_batch: Any

    def inner(self) -> Tensor:
        """The weighted loss of the train batch, with the weighter in the graph."""
        losses = self.losses(self.model, self.batch)
        weights = self.weighter(losses.weighted.detach(), losses.inputs)
        return (weights * losses.weighted).mean() + losses.fixed

    def outer(self) -> Tensor:
        return self.outer_loss(self.model, self.dev_batch)


# -- problems ------------------------------------------------------------------------------------


def dense(num_parameters: int, device: torch.device) -> Case:
    """Classification by a network of three layers, weighted by the losses of the samples."""
    torch.manual_seed(0)
    # width² + (features + classes + 2)·width + classes = num_parameters
    linear = NUM_FEATURES + NUM_CLASSES + 2
    width = round((-linear + math.sqrt(linear**2 + 4 * (num_parameters - NUM_CLASSES))) / 2)
    model = nn.Sequential(
        nn.Linear(NUM_FEATURES, width),
        nn.Tanh(),
        nn.Linear(width, width),
        nn.Tanh(),
        nn.Linear(width, NUM_CLASSES),
    )

    def losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Losses:
        x, y = batch
        return Losses(cross_entropy(model(x), y, reduction="none"))

    def batch() -> tuple[Tensor, Tensor]:
        x, y = torch.randn(BATCH, NUM_FEATURES), torch.randint(NUM_CLASSES, (BATCH,))
        return x.to(device), y.to(device)

    return Case(
        model.to(device),
        awake(reweight.LossWeighter(16)).to(device),
        losses,
        lambda model, batch: losses(model, batch).weighted.mean(),
        batch(),
        batch(),
    )


def tables(num_rows: int, device: torch.device) -> Case:
    """CoNet with a source table of ``num_rows`` rows, and the behavioral perceptron."""
    torch.manual_seed(0)
    sizes = SimpleNamespace(
        num_users=NUM_USERS,
        source_items=SimpleNamespace(num=num_rows, num_categories=NUM_CATEGORIES),
        target_items=SimpleNamespace(num=NUM_TARGET_ITEMS, num_categories=NUM_CATEGORIES),
    )
    model = CoNet(sizes, CoNetOptions(dim=DIM)).to(device)

    def candidates(num: int, *shape: int) -> Candidates:
        return Candidates(
            torch.randint(num, shape, device=device),
            torch.randint(NUM_CATEGORIES, shape, device=device),
        )

    def history(num: int) -> History:
        length = torch.randint(1, HISTORY + 1, (BATCH, 1), device=device)
        mask = torch.arange(HISTORY, device=device) < length
        return History(candidates(num, BATCH, HISTORY), mask)

    def batch() -> PairBatch:
        user = torch.randint(NUM_USERS, (BATCH,), device=device)
        return PairBatch(
            user=user,
            target=candidates(NUM_TARGET_ITEMS, BATCH),
            source=candidates(num_rows, BATCH),
            target_label=torch.randint(2, (BATCH,), device=device).float(),
            source_label=torch.randint(2, (BATCH,), device=device).float(),
            source_user=user,
            source_row=torch.zeros_like(user),  # not used
            has_source=torch.ones(BATCH, dtype=torch.bool, device=device),
            source_history=history(num_rows),
            target_history=history(NUM_TARGET_ITEMS),
        )

    return Case(
        model,
        awake(reweight.BehavioralPerceptron(2 * DIM)).to(device),
        lambda model, batch: model.losses(batch),
        lambda model, batch: model.outer_loss(batch),
        batch(),
        batch(),
    )


def awake(weighter: reweight.SampleWeighter) -> reweight.SampleWeighter:
    """Move it away from its start, where a last layer of zeros passes no gradient on."""
    with torch.no_grad():
        for parameter in weighter.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return weighter


# -- methods -------------------------------------------------------------------------------------

Gradient = Callable[[], Sequence[Tensor]]
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


class _Both(nn.Module):
    """Model and weighter as one module, so that ``functional_call`` reaches both."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.model, self.weighter = case.model, case.weighter

    def forward(self, loss: Callable[[], Tensor]) -> Tensor:
        return loss()


def torchopt(case: Case, num_terms: int) -> Gradient:
    from torchopt.diff.implicit import custom_root
    from torchopt.linear_solve import solve_inv

    # It calls functorch.vjp, which is deprecated.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torchopt")
    both = _Both(case)
    names = [name for name, _ in both.named_parameters()]
    params = tuple(p.detach() for p in case.model.parameters())
    hparams = tuple(case.weighter.parameters())

    def evaluate(loss: Callable[[], Tensor], theta: Any, phi: Any) -> Tensor:
        tensors = dict(zip(names, (*theta, *phi), strict=True))
        return torch.func.functional_call(both, tensors, (loss,))

    def inner(theta: Any, phi: Any) -> Tensor:
        return evaluate(case.inner, theta, phi)

    solver = solve_inv(ns=True, maxiter=num_terms, alpha=STEP_SIZE)

    @custom_root(torch.func.grad(inner, argnums=0), argnums=1, solve=solver)
    def solution(theta: Any, phi: Any) -> Any:
        return theta

    def gradient() -> Sequence[Tensor]:
        return torch.autograd.grad(
            evaluate(case.outer, solution(params, hparams), hparams), hparams
        )

    return gradient


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


def apart(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    x, y = (torch.cat([t.detach().double().reshape(-1) for t in g]) for g in (found, expected))
    return float((x - y).norm() / y.norm())


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
        print("TorchOpt is not installed: pip install '.[bench]' for its rows")
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
