"""A training of Lightning: two processes, or one with twice the batch."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

import reweight
from _support.parallel.launch import TIMEOUT, main, parameters
from _support.parallel.regression import (
    SAMPLES,
    data,
    dev_loader,
    losses,
    network,
    outer_loss,
)
from _support.problems import SigmoidWeights
from reweight.integrations.lightning import ReweightCallback, ReweightMixin


class Line(ReweightMixin, lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def losses(self, batch: Any) -> reweight.Losses:
        return losses(self.net, batch)

    def outer_loss(self, batch: Any) -> Tensor:
        return outer_loss(self.net, batch)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.weighted_loss(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2, weight_decay=1e-3)


class Training:
    """A module, its callback and its trainer.

    Args:
        weighter: a class of weighters.
        epochs: at which it ends.
        folder: of its logs.
        rank: this process.
        size: the number of processes.
    """

    def __init__(
        self, weighter: type[Any], epochs: int, folder: Path, rank: int, size: int
    ) -> None:
        self.module = Line()
        torch.manual_seed(rank)  # as without a seed: the processes follow the first one
        learner = weighter(8).double()
        outer_optimizer = torch.optim.Adam(learner.parameters(), lr=1e-2)
        self.callback = ReweightCallback(learner, outer_optimizer, dev_loader(), every=1)
        joined = size == 1 and weighter is reweight.LossWeighter
        order = DistributedSampler(data(1, SAMPLES), size, rank, shuffle=False)
        self.loader = DataLoader(data(1, SAMPLES), 8 if joined else 4, sampler=order)
        self.trainer = lightning.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            devices=size,
            strategy=DDPStrategy(timeout=TIMEOUT) if size > 1 else "auto",
            accumulate_grad_batches=4 if size == 1 and not joined else 2,
            callbacks=[self.callback],
            use_distributed_sampler=False,  # Lightning's own one shuffles
            logger=CSVLogger(folder, name="logs", version=0),
            log_every_n_steps=1,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    def fit(self, checkpoint: str | None = None) -> Tensor:
        self.trainer.fit(self.module, self.loader, ckpt_path=checkpoint)
        return parameters(self.module, self.callback.weighter)


def run(folder: Path, rank: int, size: int) -> dict[str, Any]:
    warnings.filterwarnings("ignore", module="lightning")
    training = Training(reweight.LossWeighter, 4, folder / "whole", rank, size)
    found: dict[str, Any] = {"compared": training.fit()}
    found["mean"] = training.trainer.callback_metrics["reweight/weight_mean"]
    found["alone"] = Training(SigmoidWeights, 4, folder / "alone", rank, size).fit()

    checkpoint = str(folder / "half.ckpt")
    half = Training(reweight.LossWeighter, 2, folder / "half", rank, size)
    half.fit()
    half.trainer.save_checkpoint(checkpoint)
    resumed = Training(reweight.LossWeighter, 4, folder / "resumed", rank, size)
    found["resumed"] = resumed.fit(checkpoint)
    return found


if __name__ == "__main__":
    main(run)
