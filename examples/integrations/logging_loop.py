"""Outer steps in TensorBoard: handwritten digits, 40 % of the labels wrong.

    python examples/integrations/logging_loop.py [--logdir FOLDER] [--seeds N]

An ordinary loop whose outer steps are logged; then ``tensorboard --logdir FOLDER``. It needs
tensorboard and scikit-learn.
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.tensorboard import SummaryWriter

import reweight
from reweight.diagnostics import Recorder
from reweight.integrations.logging import log_recorder

NOISE, EPOCHS, BATCH = 0.4, 30, 64
EVERY = 5  # steps between two outer steps
Samples = tuple[Tensor, Tensor]


def losses(model: nn.Module, batch: Samples) -> Tensor:
    """One loss per sample."""
    return cross_entropy(model(batch[0]), batch[1], reduction="none")


def outer_loss(model: nn.Module, batch: Samples) -> Tensor:
    """The dev loss, which the weights minimise."""
    return losses(model, batch).mean()


def fit(train: Samples, seed: int, dev: Samples | None, writer: SummaryWriter | None) -> nn.Module:
    """Train a model; with dev samples, with learned weights."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, weight_decay=1e-4)
    weighter = reweight.LossWeighter()
    outer_optimizer = torch.optim.Adam(weighter.parameters(), lr=3e-3)
    rw = reweight.wrap(model, weighter, losses, outer_loss, optimizer)
    recorder, step = Recorder(), 0
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(train[1])).split(BATCH):
            batch = train[0][rows], train[1][rows]
            loss = rw.loss(batch)  # all weights are 1 before the first outer step
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if dev is not None and step % EVERY == 0:
                outer_optimizer.zero_grad()
                result = rw.outer_backward(batch, dev)
                outer_optimizer.step()
                if writer is not None:
                    weights = rw.weights(batch)
                    recorder.add(step, result, weights)
                    log_recorder(writer, recorder, weights)
    return model


def split(seed: int) -> tuple[Samples, Samples, Samples]:
    """Train samples with wrong labels among them, 200 clean dev samples, test samples."""
    generator = torch.Generator().manual_seed(seed)
    features, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=generator)
    x, y = torch.tensor(features, dtype=torch.float32)[order] / 16, torch.tensor(labels)[order]
    n = len(y) - 700
    wrong = torch.rand(n, generator=generator) < NOISE
    noisy = (y[:n] + torch.randint(1, 10, (n,), generator=generator)) % 10
    train = x[:n], torch.where(wrong, noisy, y[:n])
    return train, (x[n : n + 200], y[n : n + 200]), (x[n + 200 :], y[n + 200 :])


def main(arguments: list[str] | None = None) -> None:
    """Print the accuracies, and log the outer steps of the first training."""
    parser = argparse.ArgumentParser(description="Outer steps in TensorBoard.")
    parser.add_argument("--logdir", help="a folder for TensorBoard; default: a new one in runs/")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each kind")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)  # for tensors this small, one thread is faster than several
    found: dict[str, list[float]] = {}
    with SummaryWriter(given.logdir) as writer:
        for seed in range(given.seeds):
            train, dev, test = split(seed)
            together = torch.cat([train[0], dev[0]]), torch.cat([train[1], dev[1]])
            models = {
                "plain": fit(train, seed, None, None),
                "train and dev together": fit(together, seed, None, None),
                "learned weights": fit(train, seed, dev, None if seed else writer),
            }
            for name, model in models.items():
                with torch.no_grad():
                    right = model(test[0]).argmax(1) == test[1]
                found.setdefault(name, []).append(float(right.float().mean()))
    for name, values in found.items():
        each = torch.tensor(values)
        error = f" ± {float(each.std()) / len(each) ** 0.5:.3f}" if len(each) > 1 else ""
        print(f"{name:<23} test accuracy {float(each.mean()):.3f}{error}")
    print(f"tensorboard --logdir {writer.log_dir}")


if __name__ == "__main__":
    main()
