"""A plain training loop with everything that has a state, which can be killed and resumed.

``python -m _support.resumed_loop VARIANT FORMAT FOLDER`` trains to the end, goes on from a
checkpoint in the folder if there is one, and writes one after every micro-batch.
"""

from __future__ import annotations

import hashlib
import os
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, WeightedRandomSampler

import reweight
from reweight import (
    ConjugateGradient,
    FoldSampler,
    Identity,
    ImplicitHypergradient,
    Losses,
    Neumann,
    Nystrom,
    PairLoader,
    ReorderReuseSampler,
    SampleSpace,
    SecondMoments,
    SplitSampler,
    checkpoint,
)
from reweight.checkpoint import ResumableLoader, RunState, from_tensors, to_tensors

N, STEPS = 32, 10
# So that an epoch is over and the next one is under way.
CUT = 7

SOLVERS: dict[str, Callable[[], ImplicitHypergradient]] = {
    "auto": lambda: ImplicitHypergradient(Neumann()),
    "fixed": lambda: ImplicitHypergradient(Neumann(step_size=0.1)),
    "long": lambda: ImplicitHypergradient(Neumann(num_terms=25)),
    "cg": lambda: ImplicitHypergradient(ConjugateGradient(max_steps=5)),
    "nystrom": lambda: ImplicitHypergradient(Nystrom(rank=4)),
    "identity": lambda: ImplicitHypergradient(Identity()),
    "sama": lambda: ImplicitHypergradient(Identity(), preconditioner=SecondMoments()),
    "differences": lambda: ImplicitHypergradient(Identity(), hvp="differences"),
    "preconditioned": lambda: ImplicitHypergradient(Neumann(), preconditioner=SecondMoments()),
    "func": lambda: ImplicitHypergradient(Neumann(), hvp="func"),
    "finite differences": lambda: ImplicitHypergradient(Neumann(), hvp="finite_difference"),
    "gauss-newton": lambda: ImplicitHypergradient(Neumann(), curvature="gauss_newton"),
    "sample space": lambda: ImplicitHypergradient(
        SampleSpace(), damping=0.1, curvature="gauss_newton"
    ),
}


@dataclass(frozen=True)
class Variant:
    """What a loop is made of."""

    solver: str = "auto"
    loader: str = "pairs"
    workers: int = 0
    accumulated: int = 1
    weighter: str = "loss"
    scaled: bool = False
    sampler: str = "reuse"


VARIANTS: dict[str, Variant] = {
    **{solver: Variant(solver) for solver in SOLVERS},
    "sampler alone": Variant(loader="sampler"),
    "pairs, split": Variant(sampler="split"),
    "pairs, fold": Variant(sampler="fold"),
    "pairs, 2 workers": Variant(workers=2),
    "plain loaders": Variant(loader="plain"),
    "plain loaders, 2 workers": Variant(loader="plain", workers=2),
    "drawn loaders": Variant(loader="drawn"),
    "micro-batches": Variant(accumulated=2),
    "micro-batches, plain loaders": Variant("cg", loader="plain", accumulated=2),
    "scaler": Variant(scaled=True),
    "table weighter": Variant(weighter="table"),
}


class Noisy(Dataset[Any]):
    """Samples with noise from all three global generators."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(N, 6, generator=generator)
        flipped = torch.rand(N, generator=generator) < 0.3
        self.y = (self.x[:, 0] > 0).logical_xor(flipped).long()

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        noise = 0.1 * torch.randn(6) + 0.1 * random.random() + 0.1 * float(np.random.rand())
        return self.x[index] + noise, self.y[index], index


class Loop:
    """The objects of a training, new ones from fixed seeds."""

    def __init__(self, variant: Variant) -> None:
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        self.variant, self.step, self.seen = variant, 0, ""
        # SampleSpace does not serve the other one.
        norm = nn.LayerNorm(8) if variant.solver == "sample space" else nn.BatchNorm1d(8)
        self.model = nn.Sequential(
            nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.3), norm, nn.Linear(8, 2)
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2, weight_decay=1e-2)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, STEPS)
        by_id = variant.weighter == "table"
        self.weighter = reweight.TableWeighter(N) if by_id else reweight.LossWeighter()
        self.outer_optimizer = torch.optim.Adam(self.weighter.parameters(), lr=1e-2)
        stated = "curvature='gauss" in repr(SOLVERS[variant.solver]())

        def losses(model: nn.Module, batch: Any) -> Any:
            x, y, ids = batch
            loss = lambda out: cross_entropy(out, y, reduction="none")  # noqa: E731
            if stated:
                return Losses.of(model(x), loss)
            return Losses(loss(model(x)), inputs=ids) if by_id else loss(model(x))

        self.rw = reweight.wrap(
            self.model,
            self.weighter,
            losses,
            lambda model, batch: cross_entropy(model(batch[0]), batch[1]),
            self.optimizer,
            SOLVERS[variant.solver](),
        )
        self.average = torch.optim.swa_utils.AveragedModel(self.model)
        parts: dict[str, Any] = {
            "model": self.model,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "rw": self.rw,
            "outer_optimizer": self.outer_optimizer,
            "average": self.average,
        }
        self.scaler = None
        if variant.scaled:
            parts["scaler"] = self.scaler = torch.amp.GradScaler("cpu", growth_interval=3)
        data = Noisy()
        self.data, self.dev_loader = data, None
        if variant.loader in ("plain", "drawn"):
            how: dict[str, Any] = {"num_workers": variant.workers}
            order: dict[str, Any] = {"shuffle": True}
            if variant.loader == "drawn":
                order = {"sampler": WeightedRandomSampler([1.0] * N, N)}
            self.loader: Any = ResumableLoader(DataLoader(data, batch_size=8, **order, **how))
            generator = torch.Generator().manual_seed(3)
            dev = DataLoader(data, batch_size=12, shuffle=True, generator=generator, **how)
            parts["dev_loader"] = self.dev_loader = ResumableLoader(dev)
        else:
            sampler: Any = ReorderReuseSampler(N, 8, dev_batch_size=12, seed=3)
            if variant.sampler == "split":
                sampler = SplitSampler(N, 0.25, 8)
            elif variant.sampler == "fold":
                sampler = FoldSampler(N, 3, 1, 8)
            self.loader = sampler
            if variant.loader == "pairs":
                self.loader = PairLoader(data, sampler, num_workers=variant.workers)
        parts["loader"] = self.loader
        self.run = RunState(**parts)

    def pairs(self) -> Iterator[tuple[Any, Any]]:
        """The pairs of one epoch."""
        if self.dev_loader is not None:
            dev_batches = iter(self.dev_loader)
            for batch in self.loader:
                dev_batch = next(dev_batches, None)
                if dev_batch is None:
                    dev_batches = iter(self.dev_loader)
                    dev_batch = next(dev_batches)
                yield batch, dev_batch
            return
        for batch, dev_batch in self.loader:
            if self.variant.loader == "sampler":
                batch, dev_batch = (
                    (self.data.x[ids], self.data.y[ids], ids) for ids in (batch, dev_batch)
                )
            yield batch, dev_batch

    def train(self, until: int, after_batch: Callable[[], None] = lambda: None) -> None:
        """Train until so many micro-batches were used in all."""
        while self.step < until:
            for batch, dev_batch in self.pairs():
                self._use(batch, dev_batch)
                self.step += 1
                after_batch()
                if self.step == until:
                    break

    def _use(self, batch: Any, dev_batch: Any) -> None:
        whole = self.step % self.variant.accumulated == self.variant.accumulated - 1
        self.seen = hashlib.sha256(self.seen.encode() + batch[0].numpy().tobytes()).hexdigest()
        loss = self.rw.loss(batch)
        scaler = self.scaler
        (loss if scaler is None else scaler.scale(loss)).backward()
        if self.step >= 2 and self.step % 2:
            self.rw.outer_backward(batch, dev_batch)
        if not whole:
            return
        if scaler is None:
            self.optimizer.step()
        else:
            scaler.step(self.optimizer)
            scaler.update()
        self.outer_optimizer.step()
        self.optimizer.zero_grad()
        self.outer_optimizer.zero_grad()
        self.scheduler.step()
        self.average.update_parameters(self.model)

    def state(self) -> dict[str, Any]:
        return {"run": self.run.state_dict(), "step": self.step, "seen": self.seen}

    def load(self, state: dict[str, Any]) -> None:
        self.run.load_state_dict(state["run"])
        self.step, self.seen = state["step"], state["seen"]

    def result(self) -> str:
        """A hash of all that was learned and of all batches that were used."""
        modules = (self.model, self.weighter, self.average)
        tensors = [x for module in modules for x in module.state_dict().values()]
        found = hashlib.sha256(self.seen.encode())
        for x in (*tensors, torch.rand(2), torch.tensor([random.random(), np.random.rand()])):
            found.update(x.detach().numpy().tobytes())
        return found.hexdigest()


def save(state: Any, folder: Path, form: str) -> None:
    if form == "folder":
        return checkpoint.save(state, folder / "run")
    partial = folder / "run.partial"
    if form == "torch":
        torch.save(state, partial)
    else:
        from safetensors.torch import save_file

        save_file(to_tensors(state), partial)
    os.replace(partial, folder / "run")


def load(folder: Path, form: str) -> Any:
    if form == "folder":
        return checkpoint.load(folder / "run")
    if form == "torch":
        return torch.load(folder / "run", weights_only=True)
    from safetensors.torch import load_file

    return from_tensors(load_file(folder / "run"))


def main(variant: str, form: str, folder: str) -> None:
    torch.set_num_threads(1)
    place, loop = Path(folder), Loop(VARIANTS[variant])
    if (place / "run").exists() or (place / "run.previous").exists():
        loop.load(load(place, form))
        print("resumed", loop.step, flush=True)

    def after_batch() -> None:
        save(loop.state(), place, form)
        print(loop.step, flush=True)

    loop.train(STEPS, after_batch)
    print(loop.result(), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
