"""A loop of Accelerate: two processes that accumulate, or one with twice the batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from torch import nn

import reweight
from _support.parallel.launch import TIMEOUT, main, parameters
from _support.parallel.regression import dev_loader, losses, network, outer_loss, train_loader
from _support.problems import SigmoidWeights
from reweight.integrations.accelerate import MicroBatches, dev_batches, wrap


class Loop:
    """A training whose state Accelerate saves.

    Args:
        weighter: a class of weighters.
        rank: this process.
        size: the number of processes.
        joined: whether one process has the batches of two of them in one, or accumulates both.
    """

    def __init__(self, weighter: type[Any], rank: int, size: int, joined: bool) -> None:
        more, steps = (8, 2) if joined else (4, 4)
        self.accelerator = Accelerator(
            cpu=True,
            gradient_accumulation_steps=steps if size == 1 else 2,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=TIMEOUT)],
        )
        net = network()
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2, weight_decay=1e-3)
        train = train_loader(more if size == 1 else 4)
        self.model, self.optimizer, self.loader = self.accelerator.prepare(net, optimizer, train)
        torch.manual_seed(rank)  # as without a seed: the processes follow the first one
        learner = weighter(8).double()
        self.outer_optimizer = torch.optim.Adam(learner.parameters(), lr=1e-2)
        self.dev = dev_batches(self.accelerator, dev_loader())
        self.rw = wrap(
            self.accelerator, self.model, learner, losses, outer_loss, self.optimizer,
            outer_optimizer=self.outer_optimizer,
        )  # fmt: skip

    def epochs(self, number: int) -> None:
        window: list[Any] = []
        for batch in (batch for _ in range(number) for batch in self.loader):
            window.append(batch)
            with self.accelerator.accumulate(self.model):
                self.accelerator.backward(self.rw.loss(batch))
                self.optimizer.step()
                self.optimizer.zero_grad()
            if self.accelerator.sync_gradients:
                self.outer_optimizer.zero_grad()
                self.rw.outer_backward(MicroBatches(window), next(self.dev))
                self.outer_optimizer.step()
                window = []

    def learned(self) -> Any:
        return parameters(self.rw.model, self.rw.weighter)


def run(folder: Path, rank: int, size: int) -> dict[str, Any]:
    found = {}
    for name, weighter in (("compared", reweight.LossWeighter), ("alone", SigmoidWeights)):
        loop = Loop(weighter, rank, size, joined=name == "compared")
        loop.epochs(4)
        found[name] = loop.learned()

    loop = Loop(reweight.LossWeighter, rank, size, joined=True)
    loop.epochs(2)
    loop.accelerator.save_state(str(folder / "half"))
    loop = Loop(reweight.LossWeighter, rank, size, joined=True)
    for p in (*loop.rw.model.parameters(), *loop.rw.weighter.parameters()):
        nn.init.normal_(p)  # nothing of the first half is left
    loop.accelerator.wait_for_everyone()
    loop.accelerator.load_state(str(folder / "half"))
    loop.epochs(2)
    found["resumed"] = loop.learned()
    return found


if __name__ == "__main__":
    main(run)
