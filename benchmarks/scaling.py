"""The growth of the time of one hypergradient, in every mode of Hessian-vector products.

    python benchmarks/scaling.py [--table 100000] [--compile] [--quick] [--threads 1]
                                 [--device cpu] [--json FILE]

The model embeds a bag of ids per sample and applies a small network to their mean. There are three
sweeps: over the batch size, over the number of table rows that a batch reads (with the same number
of look-ups), and over the width of the table. The number in brackets is the time relative to a
forward and a backward pass of the inner loss on the same batch. The time is fitted as a power of
the swept quantity.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import reweight
from benchmarks._measure import interleaved, machine, ratio
from reweight import ImplicitHypergradient, Neumann

MODES = ("autograd", "func", "finite_difference")
NUM_TERMS = 3
BASE = "forward + backward"
# The values in the sweeps over another quantity.
BATCH, BAG, TOUCHED, WIDTH = 1024, 16, 1024, 16

LEGEND = f"""\
A hypergradient with {NUM_TERMS} terms is a gradient of the outer loss, one of the inner loss, and
{NUM_TERMS} products with the Hessian. Were each as cheap as a forward and a backward pass of the
inner loss, it would take {NUM_TERMS + 2} of them; one more product tells the residual, in the pass
that gives the influences. A central difference of gradients takes two such passes for each product.
The exponent is the slope of the time over what is swept, both logarithmic: 0 does not grow, 1 grows
in proportion."""


class Model(nn.Module):
    def __init__(self, num_rows: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(num_rows, width)
        self.body = nn.Sequential(nn.Linear(width, 64), nn.Tanh(), nn.Linear(64, 1))

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.body(self.table(ids).mean(1)).squeeze(-1)
        return out


def losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    ids, y = batch
    return (model(ids) - y).square()


def outer_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return losses(model, batch).mean()


def make_batch(
    size: int, touched: int, num_rows: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Ids ``[size, BAG]`` that read ``touched`` rows of the table, if there are enough ids."""
    rows = torch.randperm(num_rows)[:touched]
    ids = rows[torch.randperm(size * BAG) % touched]
    return ids.view(size, BAG).to(device), torch.randn(size).to(device)


def measure(
    num_rows: int,
    size: int,
    touched: int,
    width: int,
    modes: tuple[str, ...],
    device: torch.device,
    seconds: float,
    compiled: bool,
) -> dict[str, dict[str, float]]:
    """The milliseconds of each mode, and the ratio to a forward and backward pass."""
    torch.manual_seed(0)
    model, weighter = Model(num_rows, width).to(device), reweight.LossWeighter().to(device)
    batch = make_batch(size, touched, num_rows, device)
    dev_batch = make_batch(size, touched, num_rows, device)
    if compiled:
        model.compile()

    def hypergradient(mode: Any) -> Callable[[], Any]:
        rw = reweight.wrap(
            model,
            weighter,
            losses,
            outer_loss,
            hypergradient=ImplicitHypergradient(Neumann(NUM_TERMS), hvp=mode),
        )
        return lambda: rw.hypergradient(batch, dev_batch)

    params = list(model.parameters())

    def passes() -> Any:
        return torch.autograd.grad(outer_loss(model, batch), params)

    calls = {BASE: passes, **{mode: hypergradient(mode) for mode in modes}}
    for call in calls.values():
        call()
    times = interleaved(calls, device, seconds)
    return {
        name: {"ms": 1e3 * min(found), "ratio": ratio(found, times[BASE])}
        for name, found in times.items()
    }


def exponent(sizes: list[int], times: list[float]) -> float:
    """The slope of the time over the size, both logarithmic, by least squares."""
    return float(np.polyfit(np.log(sizes), np.log(times), 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", type=int, default=100_000, help="rows of the table")
    parser.add_argument(
        "--compile",
        action="store_true",
        help='compile the model, which leaves out "autograd": it differentiates twice, and what '
        "torch.compile makes can't be",
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--quick", action="store_true", help="fewer sizes and less repetition")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    arguments = parser.parse_args()
    if arguments.table < BATCH * BAG:
        parser.error(f"--table {arguments.table}: up to {BATCH * BAG} of its rows are touched")
    torch.set_num_threads(arguments.threads)
    device, modes = arguments.device, MODES[1:] if arguments.compile else MODES
    print(machine(device), f"a table of {arguments.table:,} rows", LEGEND, sep="\n")
    sweeps: dict[str, tuple[list[int], Callable[[int], tuple[int, int, int]]]] = {
        "batch size": ([64, 256, 1024, 4096], lambda n: (n, TOUCHED, WIDTH)),
        "rows touched": ([64, 1024, 4096, BATCH * BAG], lambda n: (BATCH, n, WIDTH)),
        "width": ([8, 16, 64, 256], lambda n: (BATCH, TOUCHED, n)),
    }
    results: dict[str, Any] = {}
    for name, (sizes, setting) in sweeps.items():
        sizes = sizes[:2] if arguments.quick else sizes
        print(f"\n{name:>12}  {BASE:>18}" + "".join(f"  {mode:>18}" for mode in modes))
        found = {}
        for size in sizes:
            found[size] = row = measure(
                arguments.table,
                *setting(size),
                modes,
                device,
                0.5 if arguments.quick else 3.0,
                arguments.compile,
            )
            cells = [f"{row[mode]['ms']:.2f} ({row[mode]['ratio']:.1f})" for mode in modes]
            line = f"{size:12,}  {row[BASE]['ms']:18.2f}" + "".join(f"  {c:>18}" for c in cells)
            print(line, flush=True)
        slopes = {
            key: exponent(sizes, [found[size][key]["ms"] for size in sizes])
            for key in (BASE, *modes)
        }
        print(f"{'exponent':>12}" + "".join(f"  {slope:18.2f}" for slope in slopes.values()))
        results[name] = {"times": found, "exponents": slopes}
    if arguments.json:
        report = {"machine": machine(device), "table": arguments.table, **results}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
