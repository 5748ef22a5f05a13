"""What the processes of one outer step send each other, counted and beside a formula.

    python benchmarks/processes.py [--processes 2 4 8] [--rows 1000 100000] [--json FILE]

A model with an embedding table, an MLP and a `LossWeighter` is trained data-parallel by processes
of gloo on this machine, each with its own batch. Counted is what one process gives to exchanges in
one outer step (`rw.problem.ranks.traffic`). The formula is that of the page on many processes in
the documentation: with it, the last table states what larger runs would exchange.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

import reweight
from benchmarks._measure import machine
from reweight import ConjugateGradient, Identity, ImplicitHypergradient, Neumann

HEADER = 128  # bytes
FLOAT, ID = 4, 8
STRATEGIES = {
    "first-order": ImplicitHypergradient(Identity()),
    "Neumann, 3 terms": ImplicitHypergradient(Neumann(3, step_size=0.1)),
    "CG, 5 steps": ImplicitHypergradient(ConjugateGradient(5, rtol=1e-12), damping=1.0),
}
TRAIN, DEV, WIDTH, HIDDEN = 32, 32, 8, 16


@dataclass(frozen=True)
class Step:
    """An outer step, as far as its exchanges depend on it.

    Attributes:
        ranks: the number of processes.
        dense: entries of the inner parameters that are used whole.
        rows: rows of tables that any process reads: in the train batches, or for a first-order step
            in the dev batches.
        width: columns of the tables.
        read: rows of tables that the process with the most of them reads.
        weighter: parameters of the weighter.
        products: products with the Hessian, those of the verdict included; ``None``: first-order.
        batch: samples of a process, which a weighter that compares samples gathers; else 0.
        parameters: the number of parameter tensors, whose kinds are compared.
    """

    ranks: int
    dense: int
    rows: int
    width: int
    read: int
    weighter: int
    products: int | None
    batch: int
    parameters: int

    @property
    def entries(self) -> int:
        """The length of a vector over what any process uses."""
        return self.dense + self.rows * self.width

    @property
    def summed(self) -> int:
        """The bytes that a process gives to sums: vectors, and the gradient of the weighter."""
        vectors = 1 + (self.products or 0)
        return FLOAT * (vectors * self.entries + self.weighter)

    @property
    def gathered(self) -> int:
        """The bytes that it gives to be gathered: ids of rows, kinds of parameters, losses."""
        tables = ID * (self.parameters + self.read) if self.rows else 0
        return tables + FLOAT * self.batch

    @property
    def over_the_wire(self) -> float:
        """The bytes that a process sends on a ring, without headers."""
        others = self.ranks - 1
        return 2.0 * others / self.ranks * self.summed + others * self.gathered


class Model(nn.Module):
    """Ids through a table and an MLP."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, WIDTH)
        self.layers = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 1))

    def forward(self, ids: Tensor) -> Tensor:
        output: Tensor = self.layers(self.table(ids)).squeeze(-1)
        return output


def losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The squared error of each sample."""
    return (model(batch[0]) - batch[1]).square()


def outer_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Their mean."""
    return losses(model, batch).mean()


def counted(rank: int, size: int, rows: int) -> dict[str, dict[str, Any]]:
    """What one process gave in the third outer step of each strategy, and the formula."""
    found = {}
    for name, strategy in STRATEGIES.items():
        torch.manual_seed(0)
        model = Model(rows)
        weighter = reweight.LossWeighter(10)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        rw = reweight.wrap(model, weighter, losses, outer_loss, optimizer, strategy)
        generator = torch.Generator().manual_seed(rank)
        ids = [torch.randint(rows, (n,), generator=generator) for n in (TRAIN, DEV)]
        batch, dev_batch = ((x, torch.randn(len(x), generator=generator)) for x in ids)
        assert rw.problem.ranks is not None
        traffic = rw.problem.ranks.traffic
        for _ in range(3):
            before = asdict(traffic)
            info = rw.hypergradient(batch, dev_batch).info
        own = {key: value - before[key] for key, value in asdict(traffic).items()}
        of_step = ids[1] if info.first_order else ids[0]
        read = [part.unique() for part in rw.problem.ranks.rows(of_step)]
        vectors = None
        if not info.first_order:
            vectors = info.num_hvps + (info.relative_residual is not None)
        step = Step(
            ranks=size,
            dense=sum(p.numel() for p in model.layers.parameters()),
            rows=len(torch.cat(read).unique()),
            width=WIDTH,
            read=max(map(len, read)),
            weighter=sum(p.numel() for p in weighter.parameters()),
            products=vectors,
            batch=TRAIN,
            parameters=len(list(model.parameters())),
        )
        found[name] = own | {"model": asdict(step)}
    return found


def _serve(rank: int, size: int, folder: str, rows: Sequence[int], answers: Any) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size
    )
    found = {n: counted(rank, size, n) for n in rows}
    if rank == 0:
        answers.put(found)
    distributed.barrier()
    distributed.destroy_process_group()


def on_processes(size: int, rows: Sequence[int]) -> dict[int, dict[str, dict[str, Any]]]:
    """The counts of the first of some processes, by the rows of the table and the strategy."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(target=_serve, args=(rank, size, folder, rows, answers))
            for rank in range(size)
        ]
        for process in processes:
            process.start()
        found: dict[int, dict[str, dict[str, Any]]] = answers.get(timeout=300.0)
        for process in processes:
            process.join()
    return found


# Larger runs, by the formula. A batch of a process reads 26 ids for each sample, all different.
LARGER = {
    "8 GPUs, 100 M parameters": (8, 100_000_000, 0, 0, 256),
    "64 GPUs, 7 B parameters": (64, 7_000_000_000, 0, 0, 64),
    "64 GPUs, 50 M and a table of 10^9 rows": (64, 50_000_000, 26, 64, 1024),
    "1,000 GPUs, 50 M and a table of 10^10 rows": (1000, 50_000_000, 26, 64, 1024),
}


def larger() -> list[tuple[str, str, float, float, float]]:
    """Entries of a vector, and gibibytes given to sums and sent over the wire, for each run."""
    found = []
    for name, (ranks, dense, ids, width, batch) in LARGER.items():
        for strategy, products in (("first-order", None), ("Neumann, 3 terms", 3)):
            read = ids * batch
            step = Step(ranks, dense, ranks * read, width, read, 10_000, products, batch, 100)
            gib = 2.0**30
            row = (name, strategy, step.entries, step.summed / gib, step.over_the_wire / gib)
            found.append(row)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 100_000, 1_000_000])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(argv)
    print(machine(torch.device("cpu")))
    print("bytes that one process gives in one outer step: counted, and by the formula\n")
    head = f"{'':18} {'processes':>9} {'table rows':>10} {'read':>6}"
    print(f"{head} {'summed':>8} {'formula':>8} {'gathered':>8} {'formula':>8} {'headers':>7}")
    records = []
    for size in arguments.processes:
        for rows, found in on_processes(size, arguments.rows).items():
            for name, own in found.items():
                step = Step(**own["model"])
                records.append({"processes": size, "rows": rows, "strategy": name} | own)
                print(
                    f"{name:18} {size:>9} {rows:>10} {step.rows:>6} {own['summed']:>8} "
                    f"{step.summed:>8} {own['gathered']:>8} {step.gathered:>8} {own['headers']:>7}"
                )
    print("\nlarger runs, by the formula, in GiB for each process and outer step\n")
    for name, strategy, entries, summed, wire in larger():
        print(f"{name:44} {strategy:18} {entries:>14,} {summed:>9.3g} {wire:>9.3g}")
    if arguments.json:
        arguments.json.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
