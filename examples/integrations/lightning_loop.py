"""Learned weights in a Lightning training: handwritten digits, 40 % of the labels wrong.

    python examples/integrations/lightning_loop.py [--seeds N]

Compares plain training, training on train and dev samples together, learned weights, and a new
training on both with these weights. It needs lightning and scikit-learn.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from typing import Any

import lightning
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import reweight
from reweight.integrations.lightning import ReweightCallback, ReweightMixin

NOISE, EPOCHS, BATCH = 0.4, 30, 64
Samples = tuple[Tensor, ...]  # features [N, 64], labels [N], weights [N]


class Digits(lightning.LightningModule):  # type: ignore[misc]
    """A plain classifier; each sample comes with a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def losses(self, batch: Samples) -> Tensor:
        """One loss per sample."""
        return cross_entropy(self.net(batch[0]), batch[1], reduction="none")

    def training_step(self, batch: Samples, batch_idx: int) -> Tensor:
        """The weighted mean."""
        return (batch[2] * self.losses(batch)).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=3e-3, weight_decay=1e-4)


class LearnedWeights(ReweightMixin, Digits):
    """The same classifier with learned weights."""

    def outer_loss(self, batch: Samples) -> Tensor:
        """The dev loss, which the weights minimise."""
        return self.losses(batch).mean()

    def training_step(self, batch: Samples, batch_idx: int) -> Tensor:
        """The weighted mean, by weights that the callback learns."""
        return self.weighted_loss(batch)


def fit(module: Digits, train: Samples, callbacks: list[Any], epochs: int = EPOCHS) -> Digits:
    """An ordinary Lightning training."""
    trainer = lightning.Trainer(
        max_epochs=epochs,
        callbacks=callbacks,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(TensorDataset(*train), batch_size=BATCH, shuffle=True))
    return module


def compare(seed: int) -> tuple[list[float], float, float]:
    """The accuracies of four trainings, and the mean weights of right and of wrong labels."""
    train, wrong, dev, test = split(seed)
    both = tuple(torch.cat(pair) for pair in zip(train, dev, strict=True))

    def accuracy(module: Digits) -> float:
        with torch.no_grad():
            return float((module.net(test[0]).argmax(1) == test[1]).float().mean())

    def seeded(kind: type[Digits]) -> Digits:
        torch.manual_seed(seed)
        return kind()

    weighter = reweight.LossWeighter()
    outer_optimizer = torch.optim.Adam(weighter.parameters(), lr=3e-3)
    callback = ReweightCallback(weighter, outer_optimizer, [dev], every=5)
    plain = fit(seeded(Digits), train, [])
    together = fit(seeded(Digits), both, [])
    learned = fit(seeded(LearnedWeights), train, [callback])
    assert callback.reweighted is not None
    weights = callback.reweighted.weights(train)
    weighted = (*both[:2], torch.cat([weights, dev[2]]))
    again = fit(seeded(Digits), weighted, [])
    found = [accuracy(module) for module in (plain, together, learned, again)]
    return found, float(weights[~wrong].mean()), float(weights[wrong].mean())


def split(seed: int) -> tuple[Samples, Tensor, Samples, Samples]:
    """Train samples, which of them are labelled wrongly, 200 clean dev samples, test samples."""
    generator = torch.Generator().manual_seed(seed)
    features, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=generator)
    x, y = torch.tensor(features, dtype=torch.float32)[order] / 16, torch.tensor(labels)[order]
    n = len(y) - 700
    wrong = torch.rand(n, generator=generator) < NOISE
    noisy = (y[:n] + torch.randint(1, 10, (n,), generator=generator)) % 10
    one = torch.ones(len(y))
    train = x[:n], torch.where(wrong, noisy, y[:n]), one[:n]
    dev, test = (
        (x[part], y[part], one[part]) for part in (slice(n, n + 200), slice(n + 200, None))
    )
    return train, wrong, dev, test


def main(arguments: list[str] | None = None) -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description="Learned weights in a Lightning training.")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each kind")
    seeds = parser.parse_args(arguments).seeds
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")  # of few workers, and the like
    torch.set_num_threads(1)  # for tensors this small, one thread is faster than several
    runs = [compare(seed) for seed in range(seeds)]
    names = ("plain", "train and dev together", "learned weights", "the same weights, with dev")
    for name, values in zip(names, zip(*(run[0] for run in runs), strict=True), strict=True):
        each = torch.tensor(values)
        error = f" ± {float(each.std()) / seeds**0.5:.3f}" if seeds > 1 else ""
        print(f"{name:<27} test accuracy {float(each.mean()):.3f}{error}")
    right, wrong = (sum(run[k] for run in runs) / seeds for k in (1, 2))  # type: ignore[misc]
    print(f"mean weight: right labels {right:.2f}, wrong labels {wrong:.2f}")


if __name__ == "__main__":
    main()
