"""What a training step costs on a GPU, with and without CUDA graphs, tf32 and bfloat16.

    python benchmarks/gpu.py [--batch-size 64] [--json FILE]

CoNet on random behaviours of the size of Books-Toys (7,576 users, 134,350 and 11,567 items), with
the perceptron and the histories of the paper. Base is the model without learned weights, ours the
one with them. Per row: milliseconds of an inner step (loss, backward, Adam) and of an outer step,
their batches made beforehand, and the seconds of a whole epoch, batches and outer steps included.
Autocast and CUDA graphs are for inner steps only; tf32 is for both.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from torch import Tensor

import reweight
from cdr.batches import Batches, PairBatch
from cdr.data import CrossDomainData, Interactions, build
from cdr.graphs import CapturedStep
from cdr.models import CoNet
from cdr.options import PAPER

VARIANTS = ("base", "ours")
# (tf32, bfloat16 autocast). Not both: autocast leaves no product of matrices to tf32.
PRECISIONS = {"float32": (False, False), "tf32": (True, False), "bf16": (False, True)}
STEPS, OUTER_STEPS, REPEATS = 200, 10, 3


@dataclass(frozen=True)
class Size:
    """How much data is made up."""

    users: int = 7_576
    source_items: int = 134_350
    target_items: int = 11_567
    source_per_user: int = 30
    target_per_user: int = 11


def make_data(size: Size) -> CrossDomainData:
    """Random behaviours; every source behaviour comes before every target one."""
    rng = np.random.default_rng(0)

    def domain(num_items: int, per_user: int, start: float) -> Interactions:
        # At least five each, as in a 5-core, and many more for a few.
        counts = 5 + rng.geometric(1 / (per_user - 4), size.users) - 1
        user = np.repeat(np.arange(size.users), counts)
        item = np.arange(len(user)) % num_items  # every item occurs
        rng.shuffle(item)
        return Interactions(
            user,
            item,
            rng.random(len(user)) < 0.8,
            time=start + rng.random(len(user)),
            category=np.array([f"category {i % 20}" for i in item]),
        )

    source = domain(size.source_items, size.source_per_user, 0.0)
    target = domain(size.target_items, size.target_per_user, 1.0)
    return build("the size of Books-Toys", source, target)


class Training:
    """CoNet as it is trained in one row of the table."""

    def __init__(
        self, variant: str, data: CrossDomainData, batch_size: int, *, bf16: bool, graph: bool
    ) -> None:
        self.data, self.batch_size, self._bf16 = data, batch_size, bf16
        self.device = data.source_offsets.device
        torch.manual_seed(0)
        self.model = CoNet(data, PAPER.model).to(self.device)
        self._optimizer = torch.optim.Adam(
            self.model.parameters(), lr=PAPER.inner.lr, fused=True, capturable=graph
        )
        options = PAPER.perceptron
        self.rw: reweight.Reweighted | None = None
        if variant == "ours":
            weighter = reweight.BehavioralPerceptron(
                2 * PAPER.model.dim,
                num_heads=options.heads,
                global_hidden=options.global_hidden,
                local_hidden=options.local_hidden,
                normalization=options.normalization,
                global_bias=options.global_bias,
            ).to(self.device)
            self.rw = reweight.wrap(
                self.model,
                weighter,
                optimizer=self._optimizer,
                hypergradient=PAPER.outer.hypergradient(),
            )
            self._outer_optimizer = torch.optim.SGD(weighter.parameters(), lr=PAPER.outer.lr)
        self.batches = Batches(data, options.history if self.rw else 0, seed=0)
        self.step: Callable[[PairBatch], Tensor] = self._step
        if graph:
            self.step = CapturedStep(self._step, self.draw(1)[0])

    def draw(self, count: int) -> list[PairBatch]:
        """Random full batches."""
        rows = torch.randint(len(self.data.train), (count, self.batch_size), device=self.device)
        return [self.batches.train_pairs(row) for row in rows]

    def outer_step(self, batch: PairBatch, dev_batch: PairBatch) -> None:
        """Move the perceptron."""
        assert self.rw is not None
        self._outer_optimizer.zero_grad()
        self.rw.outer_backward(batch, dev_batch)
        self._outer_optimizer.step()

    def epoch(self) -> None:
        """All training rows once, the last of them in a batch of what is left."""
        rows = torch.randperm(len(self.data.train), device=self.device)
        total = torch.zeros((), device=self.device)
        for step, part in enumerate(rows.split(self.batch_size), 1):
            total += self.step(self.batches.train_pairs(part))
            if self.rw and step % PAPER.outer.interval == 0:
                self.outer_step(*self.draw(2))
        if not bool(total.isfinite()):
            raise FloatingPointError(f"the losses of an epoch add up to {float(total)}")

    def _step(self, batch: PairBatch) -> Tensor:
        self._optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16):
            if self.rw:
                loss = self.rw.loss(batch)
            else:
                losses = self.model.losses(batch)
                loss = losses.fixed + PAPER.inner.gamma * losses.weighted.mean()
        loss.backward()
        self._optimizer.step()
        return loss.detach()


def seconds(work: Callable[[], None], device: torch.device) -> float:
    """The least of some repeats, each waited for."""
    found = []
    for _ in range(REPEATS):
        _wait(device)
        start = time.perf_counter()
        work()
        _wait(device)
        found.append(time.perf_counter() - start)
    return min(found)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def row(variant: str, data: CrossDomainData, batch_size: int, precision: str, graph: bool) -> Any:
    """One line of the table."""
    tf32, bf16 = PRECISIONS[precision]
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        training = Training(variant, data, batch_size, bf16=bf16, graph=graph)
        device = training.device
        batches = training.draw(STEPS)
        for batch in batches[:5]:  # three steps of warm-up, the recording, a replay
            training.step(batch)

        def inner() -> None:
            for batch in batches:
                training.step(batch)

        def outer() -> None:
            for batch, dev_batch in zip(batches[:OUTER_STEPS], batches[1:], strict=False):
                training.outer_step(batch, dev_batch)

        result = {"variant": variant, "precision": precision, "graph": graph}
        result["inner_ms"] = seconds(inner, device) / STEPS * 1e3
        if training.rw:
            training.outer_step(*batches[:2])  # the first one looks the model over
            result["outer_ms"] = seconds(outer, device) / OUTER_STEPS * 1e3
        result["epoch_s"] = seconds(training.epoch, device)
    finally:
        torch.set_float32_matmul_precision(before)
    return result


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
    warnings.simplefilter("ignore")  # the paper's step size diverges at times
    data = make_data(Size()).to("cuda")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, batches of", end=" ")
    print(f"{arguments.batch_size}, {len(data.train):,} training rows")
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
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
