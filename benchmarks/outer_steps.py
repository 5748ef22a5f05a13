"""The time and the memory of outer steps on large shapes, on a GPU or a CPU.

    python benchmarks/outer_steps.py [--device cuda] [--small] [--no-compile] [--json FILE]

Two models with random weights: the shape of GPT-2 small (124 million parameters, sequences of 128
tokens), with all parameters and with adapters of low rank, and that of ResNet-18 on images of 64 by
64 pixels. "forward + backward" is that of the mean loss of a train batch. Each other row is an
outer step on that batch and a dev batch of the same size: milliseconds, the same in passes forward
and backward, the peak memory, and the seconds of the first step, in which derivatives are compared
and programs are compiled.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu

import reweight
from benchmarks._measure import interleaved, machine, peak_mib
from benchmarks._peers.trainings import GROUPS, LanguageModel, Shape, losses, outer_loss
from reweight import Identity, ImplicitHypergradient, Neumann

SECONDS, ROUNDS = 5.0, 5
GPT2_SMALL = Shape(num_layers=12, vocabulary=50_257, length=128)
GPT2_TINY = Shape(width=32, num_heads=4, vocabulary=64, length=8)

Strategies = dict[str, ImplicitHypergradient]


@dataclass(frozen=True)
class Workload:
    """A model, and two batches for it."""

    model: nn.Module
    losses: Callable[[Any, Any], Any]
    outer_loss: Callable[[Any, Any], Tensor]
    batch: Any
    dev_batch: Any
    weighter: reweight.SampleWeighter


class _Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(2))
        self.shortcut: nn.Module = nn.Identity()
        if before != width:
            self.shortcut = nn.Conv2d(before, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.norms[1](self.second(relu(self.norms[0](self.first(x)))))
        return relu(out + self.shortcut(x))


def resnet(width: int) -> nn.Module:
    """The shape of ResNet-18, for small images."""
    blocks: list[nn.Module] = []
    for before, after, stride in ((1, 1, 1), (1, 2, 2), (2, 4, 2), (4, 8, 2)):
        blocks += [
            _Block(before * width, after * width, stride),
            _Block(after * width, after * width, 1),
        ]
    stem = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
    return nn.Sequential(
        stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * width, 10)
    )


def image_losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return cross_entropy(model(batch[0]), batch[1], reduction="none")


def workloads(device: torch.device, *, small: bool) -> dict[str, Callable[[], Workload]]:
    """What is measured, each made when it is called."""
    shape, width, images = (GPT2_TINY, 4, 8) if small else (GPT2_SMALL, 64, 64)

    def language(lora: bool) -> Workload:
        torch.manual_seed(0)
        model = LanguageModel(shape, lora).to(device)

        def batch() -> tuple[Tensor, Tensor]:
            ids = torch.randint(shape.vocabulary, (shape.batch, shape.length))
            return ids.to(device), torch.randint(GROUPS, (shape.batch,)).to(device)

        weighter = reweight.GroupWeighter(GROUPS).to(device)
        return Workload(model, losses, outer_loss, batch(), batch(), weighter)

    def vision() -> Workload:
        torch.manual_seed(0)
        side = 16 if small else 64

        def batch() -> tuple[Tensor, Tensor]:
            labels = torch.randint(10, (images,))
            return torch.randn(images, 3, side, side).to(device), labels.to(device)

        def outer(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            return image_losses(model, batch).mean()

        weighter = reweight.LossWeighter().to(device)
        model = resnet(width).to(device)
        return Workload(model, image_losses, outer, batch(), batch(), weighter)

    return {
        "GPT-2 small": lambda: language(lora=False),
        "GPT-2 small, LoRA": lambda: language(lora=True),
        "ResNet-18": vision,
    }


def strategies(*, compiled: bool) -> Strategies:
    """The outer steps, by name."""
    eager: Strategies = {
        "first-order": ImplicitHypergradient(Identity()),
        "Neumann 3": ImplicitHypergradient(Neumann(3, step_size=1e-3)),
    }
    if not compiled:
        return eager
    solvers = {name: strategy.solver for name, strategy in eager.items()}
    return eager | {
        f"{name}, compiled": ImplicitHypergradient(solver, compile=True)
        for name, solver in solvers.items()
    }


def measured(
    workload: Workload, chosen: Strategies, device: torch.device, seconds: float, rounds: int
) -> list[dict[str, Any]]:
    """A row for the pass, and one for each outer step."""
    trained = [p for p in workload.model.parameters() if p.requires_grad]

    def unit() -> None:
        torch.autograd.grad(workload.outer_loss(workload.model, workload.batch), trained)

    calls: dict[str, Callable[[], Any]] = {"forward + backward": unit}
    first: dict[str, float] = {}
    for name, strategy in chosen.items():
        rw = reweight.wrap(
            workload.model,
            workload.weighter,
            workload.losses,
            workload.outer_loss,
            hypergradient=strategy,
        )

        def step(rw: reweight.Reweighted = rw) -> Any:
            return rw.hypergradient(workload.batch, workload.dev_batch)

        start = time.perf_counter()
        step()
        first[name] = time.perf_counter() - start
        step()  # some problems are looked at once more
        calls[name] = step
    peaks = {name: peak_mib(call, device) for name, call in calls.items()}
    times = interleaved(calls, device, seconds, rounds)
    unit_ms = statistics.median(times["forward + backward"]) * 1e3
    return [
        {
            "step": name,
            "ms": (ms := statistics.median(times[name]) * 1e3),
            "passes": ms / unit_ms,
            "peak_mib": peaks[name],
            "first_s": first.get(name),
        }
        for name in calls
    ]


def table(name: str, rows: list[dict[str, Any]]) -> str:
    lines = [f"{name:<24}{'ms':>9}{'passes':>9}{'peak MiB':>10}{'first':>9}"]
    for row in rows:
        first = "" if row["first_s"] is None else f"{row['first_s']:.1f} s"
        lines.append(
            f"  {row['step']:<22}{row['ms']:>9.2f}{row['passes']:>9.2f}{row['peak_mib']:>10.0f}"
            f"{first:>9}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=torch.device, default=torch.device(default))
    parser.add_argument("--small", action="store_true", help="tiny shapes, to see that it runs")
    parser.add_argument("--no-compile", action="store_true", help="leave out compiled steps")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    arguments = parser.parse_args()
    device = arguments.device
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error(
            f"--device {device}: torch {torch.__version__} finds no CUDA device; use --device cpu, "
            "or a CUDA build of torch on a machine with a GPU"
        )
    print(machine(device), flush=True)
    chosen = strategies(compiled=not arguments.no_compile)
    seconds, rounds = (0.2, 2) if arguments.small else (SECONDS, ROUNDS)
    found: dict[str, Any] = {}
    for name, make in workloads(device, small=arguments.small).items():
        found[name] = measured(make(), chosen, device, seconds, rounds)
        print(f"\n{table(name, found[name])}", flush=True)
    if arguments.json:
        report = {"machine": machine(device), "rows": found}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
