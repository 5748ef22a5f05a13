"""The time of training steps on a GPU, with and without CUDA graphs, tf32 and bfloat16.

    python benchmarks/gpu.py [--batch-size 64] [--json FILE]

The model is CoNet on random behaviours of the size of Books-Toys (7,576 users, 134,350 and 11,567
items), with the perceptron and the histories of the paper. "base" is the model without learned
weights and "ours" the one with them, both trained as in the example. Each row shows the
milliseconds of an inner step (loss, backward, Adam; batches made beforehand), the milliseconds of
an outer step, and the seconds of a whole epoch with batches, outer steps and validation. Autocast
and CUDA graphs apply to inner steps only, tf32 to both. The last lines compare five seeds trained
together with one.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks._behaviours import behaviours
from benchmarks._measure import machine, seconds_of
from cdr.data import CrossDomainData, PairBatch, build
from cdr.models.conet import CoNetOptions
from cdr.training import Options, Training, preset, train, train_side_by_side

VARIANTS = ("base", "ours")
SEEDS = 5
# (tf32, bfloat16 autocast). Not both: under autocast no matrix product is left for tf32.
PRECISIONS = {"float32": (False, False), "tf32": (True, False), "bf16": (False, True)}
STEPS, OUTER_STEPS, REPEATS = 200, 10, 3


@dataclass(frozen=True)
class Size:
    """The size of the generated data."""

    users: int = 7_576
    source_items: int = 134_350
    target_items: int = 11_567
    source_per_user: int = 30
    target_per_user: int = 11


def make_data(size: Size) -> CrossDomainData:
    """Random behaviours; every source behaviour is earlier than every target behaviour."""
    rng = np.random.default_rng(0)
    users = size.users
    source = behaviours(rng, users, size.source_items, users * size.source_per_user)
    target = behaviours(rng, users, size.target_items, users * size.target_per_user, start=1.0)
    return build("the size of Books-Toys", source, target)


def made(
    variant: str, data: CrossDomainData, batch_size: int, *, bf16: bool, graph: bool
) -> Training:
    """The training of the example with the settings of one row of the table."""
    training = Training(variant, data, options(batch_size, graph=graph), seed=0)
    if bf16:
        loss, device = training.loss, data.source_offsets.device.type

        def halved(batch: PairBatch) -> Tensor:
            with torch.autocast(device, torch.bfloat16):
                return loss(batch)

        training.loss = halved
    return training


def options(batch_size: int, *, graph: bool = False) -> Options:
    paper = preset("paper", "conet")
    return replace(
        paper,
        model=CoNetOptions(),
        inner=replace(paper.inner, batch_size=batch_size, epochs=1, cuda_graphs=graph),
        outer=replace(paper.outer, batch_size=batch_size),
    )


def draw(training: Training, data: CrossDomainData, batch_size: int, count: int) -> list[PairBatch]:
    """Random full batches."""
    rows = torch.randint(len(data.train), (count, batch_size))
    return [training.batches.train_pairs(row) for row in rows]


def seconds(work: Callable[[], None], device: torch.device) -> float:
    """The shortest time of several repeats, each synchronized with the device."""
    return min(seconds_of(work, device) for _ in range(REPEATS))


def row(variant: str, data: CrossDomainData, batch_size: int, precision: str, graph: bool) -> Any:
    """Measure one row of the table."""
    tf32, bf16 = PRECISIONS[precision]
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        training = made(variant, data, batch_size, bf16=bf16, graph=graph)
        device = data.source_offsets.device
        batches = draw(training, data, batch_size, STEPS)
        for batch in batches[:5]:  # three warm-up steps, the capture, a replay
            training.step(batch)

        def inner() -> None:
            for batch in batches:
                training.step(batch)

        result = {"variant": variant, "precision": precision, "graph": graph}
        result["inner_ms"] = seconds(inner, device) / STEPS * 1e3
        if learner := training.learner:

            def outer() -> None:
                for _ in range(OUTER_STEPS):
                    learner.outer_step(training.batches)

            learner.outer_step(training.batches)  # the first one audits the model
            result["outer_ms"] = seconds(outer, device) / OUTER_STEPS * 1e3
        result["epoch_s"] = seconds(lambda: training.run_epoch(lambda *_: None), device)
    finally:
        torch.set_float32_matmul_precision(before)
    return result


def at_once(variant: str, data: CrossDomainData, batch_size: int) -> dict[str, float]:
    """The seconds of an epoch with validation, for one seed and for several in common steps."""
    told, device = options(batch_size), data.source_offsets.device
    return {
        "one_s": seconds(lambda: train(variant, data, told, 0), device),
        "all_s": seconds(
            lambda: train_side_by_side(variant, data, told, tuple(range(SEEDS))), device
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error(
            f"there is no CUDA device (torch {torch.__version__} finds none): run it on a machine "
            "with a GPU and a CUDA build of torch"
        )
    warnings.simplefilter("ignore")  # with the paper's step size the series sometimes diverges
    data = make_data(Size()).to("cuda")
    print(machine(data.source_offsets.device))
    print(f"batches of {arguments.batch_size}, {len(data.train):,} training rows")
    print(f"{'':6}{'precision':10}{'CUDA graph':>10}{'inner ms':>10}{'outer ms':>10}{'epoch s':>9}")
    rows = []
    for variant in VARIANTS:
        for precision in PRECISIONS:
            for graph in (False, True):
                found = row(variant, data, arguments.batch_size, precision, graph)
                rows.append(found)
                outer = f"{found['outer_ms']:.2f}" if "outer_ms" in found else "-"
                print(
                    f"{variant:6}{precision:10}{'yes' if graph else 'no':>10}"
                    f"{found['inner_ms']:10.3f}{outer:>10}{found['epoch_s']:9.2f}",
                    flush=True,
                )
    stacked = {v: at_once(v, data, arguments.batch_size) for v in VARIANTS}
    for variant, found in stacked.items():
        print(
            f"{variant}: a training of one epoch {found['one_s']:.2f} s, of {SEEDS} seeds at once "
            f"{found['all_s']:.2f} s, {found['all_s'] / (SEEDS * found['one_s']):.2f} of one by one"
        )
    if arguments.json:
        rows = {"rows": rows, "at_once": stacked}
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
