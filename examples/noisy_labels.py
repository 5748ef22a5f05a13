"""Learn sample weights with noisy labels: 40 % of the training labels are wrong.

    python examples/noisy_labels.py [--plot steps.png]

The script runs an ordinary training loop, and the same loop with weights learned from 200 correctly
labelled dev samples. It takes a few seconds on a CPU.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import reweight
from reweight.diagnostics import Recorder

NUM_CLASSES, NUM_FEATURES, NOISE = 5, 20, 0.4
STEPS = 1000
Batch = tuple[Tensor, Tensor]


def make_data(n: int, centers: Tensor) -> Batch:
    """Gaussian clusters that overlap slightly, one per class."""
    labels = torch.randint(NUM_CLASSES, (n,))
    return centers[labels] + torch.randn(n, NUM_FEATURES), labels


def losses(model: nn.Module, batch: Batch) -> Tensor:
    """One loss per sample."""
    features, labels = batch
    return cross_entropy(model(features), labels, reduction="none")


def outer_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The dev loss, which the weights minimise."""
    return losses(model, batch).mean()


def fit(
    train: Batch, dev: Batch, recorder: Recorder, *, learn_weights: bool
) -> tuple[nn.Module, Tensor]:
    """Train a model; return it and the weight of every training sample."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(NUM_FEATURES, 64), nn.ReLU(), nn.Linear(64, NUM_CLASSES))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, weight_decay=1e-4)

    weighter = reweight.LossWeighter()
    outer_optimizer = torch.optim.Adam(weighter.parameters(), lr=1e-3)
    rw = reweight.wrap(model, weighter, losses, outer_loss, optimizer)

    for step in range(STEPS):
        rows = torch.randint(len(train[1]), (100,))
        batch = train[0][rows], train[1][rows]
        loss = rw.loss(batch)  # was: losses(model, batch).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if learn_weights:
            outer_optimizer.zero_grad()
            result = rw.outer_backward(batch, dev)
            outer_optimizer.step()
            recorder.add(step, result, rw.weights(batch))
    return model, rw.weights(train)


@torch.no_grad()
def accuracy(model: nn.Module, batch: Batch) -> float:
    """The share of samples that are classified correctly."""
    features, labels = batch
    return float((model(features).argmax(1) == labels).float().mean())


def main(arguments: list[str] | None = None) -> None:
    """Compare the two loops."""
    parser = argparse.ArgumentParser(description="Learn sample weights with noisy labels.")
    parser.add_argument("--plot", metavar="FILE", help="plot the outer steps to this file")
    plot = parser.parse_args(arguments).plot
    recorder = Recorder()
    torch.manual_seed(1)
    torch.set_num_threads(1)  # for tensors this small, one thread is faster than several
    centers = torch.randn(NUM_CLASSES, NUM_FEATURES)
    (features, labels), dev, test = (make_data(n, centers) for n in (2000, 200, 5000))
    wrong = torch.rand(len(labels)) < NOISE
    noisy = torch.where(wrong, (labels + torch.randint(1, NUM_CLASSES, labels.shape)) % 5, labels)

    print(f"{NOISE:.0%} of {len(labels)} training labels are wrong")
    for name, learn in (("plain loop", False), ("learned weights", True)):
        model, weights = fit((features, noisy), dev, recorder, learn_weights=learn)
        line = f"{name:<16} test accuracy {accuracy(model, test):.3f}"
        if learn:
            right, mistaken = weights[~wrong].mean(), weights[wrong].mean()
            line += f"   mean weight: right labels {right:.2f}, wrong labels {mistaken:.2f}"
        print(line)
    if plot:
        recorder.plot(plot)
        print(f"{recorder.summary()}\n{plot}")


if __name__ == "__main__":
    main()
