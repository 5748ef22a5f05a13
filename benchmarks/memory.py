"""Resident memory over many outer steps, which must not grow.

    python benchmarks/memory.py [--steps 2000] [--hvp autograd] [--json FILE]

A model with an embedding, batch normalisation and dropout is trained with an outer step after every
inner one, on batches of changing size.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import reweight

WARM = 100  # outer steps after which memory counts as settled


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(2_000, 16)
        self.body = nn.Sequential(
            nn.Linear(16, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 1)
        )

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.body(self.table(ids)).squeeze(-1)
        return out


def losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    ids, y = batch
    return (model(ids) - y).square()


def resident() -> int:
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def run(steps: int, hvp: Any) -> dict[str, Any]:
    """Resident bytes after each outer step's end, from the first to the last."""
    torch.manual_seed(0)
    model, weighter = Model(), reweight.LossWeighter()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-4)
    outer_optimizer = torch.optim.Adam(weighter.parameters(), lr=1e-3)
    rw = reweight.wrap(
        model,
        weighter,
        losses,
        lambda model, batch: losses(model, batch).mean(),
        optimizer,
        reweight.ImplicitHypergradient(hvp=hvp),
    )

    def batch(step: int) -> tuple[Tensor, Tensor]:
        size = 64 + 16 * (step % 5)
        return torch.randint(2_000, (size,)), torch.randn(size)

    sizes = []
    for step in range(steps):
        train = batch(step)
        optimizer.zero_grad()
        rw.loss(train).backward()
        optimizer.step()
        outer_optimizer.zero_grad()
        rw.outer_backward(train, batch(step + 1))
        outer_optimizer.step()
        sizes.append(resident())
    settled, last = max(sizes[WARM - 5 : WARM]), max(sizes[-5:])
    return {
        "steps": steps,
        "hvp": hvp,
        "settled_mib": settled / 2**20,
        "last_mib": last / 2**20,
        "largest_mib": max(sizes[WARM:]) / 2**20,
        "growth": max(sizes[WARM:]) / settled - 1.0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument(
        "--hvp", default="auto", choices=["auto", "autograd", "func", "finite_difference"]
    )
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    arguments = parser.parse_args()
    if arguments.steps <= WARM:
        parser.error(f"--steps {arguments.steps}: memory is settled after {WARM}; take more")
    torch.set_num_threads(1)
    result = run(arguments.steps, arguments.hvp)
    print(
        f"{result['steps']} outer steps, hvp={result['hvp']!r}: {result['settled_mib']:.1f} MiB "
        f"after {WARM}, {result['last_mib']:.1f} MiB at the end, {result['largest_mib']:.1f} MiB "
        f"at most ({result['growth']:+.2%})"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
