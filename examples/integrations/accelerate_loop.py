"""Learned weights in a loop of Accelerate: handwritten digits, 40 % of the labels wrong.

    python examples/integrations/accelerate_loop.py [--seeds N] [--mixed-precision bf16]

Compares the plain loop, the loop on train and dev samples together, learned weights, and a new
training on both with these weights. Gradients are accumulated over two batches. It needs accelerate
and scikit-learn.
"""

from __future__ import annotations

import argparse

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import reweight
from reweight.integrations import accelerate as reweight_accelerate

NOISE, EPOCHS, BATCH, ACCUMULATED = 0.4, 30, 32, 2
EVERY = 5  # optimizer steps between two outer steps
Samples = tuple[Tensor, ...]  # features [N, 64], labels [N], weights [N]


def losses(model: nn.Module, batch: Samples) -> Tensor:
    """One loss per sample."""
    return cross_entropy(model(batch[0]), batch[1], reduction="none")


def outer_loss(model: nn.Module, batch: Samples) -> Tensor:
    """The dev loss, which the weights minimise."""
    return losses(model, batch).mean()


def fit(
    train: Samples, seed: int, mixed_precision: str, dev: Samples | None = None
) -> tuple[nn.Module, Tensor | None]:
    """Train a model; with dev samples, learn a weight for every training sample too."""
    accelerator = Accelerator(
        cpu=True, gradient_accumulation_steps=ACCUMULATED, mixed_precision=mixed_precision
    )
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    model, optimizer, loader = accelerator.prepare(
        net,
        torch.optim.Adam(net.parameters(), lr=3e-3, weight_decay=1e-4),
        DataLoader(TensorDataset(*train), batch_size=BATCH, shuffle=True),
    )

    if dev is not None:
        weighter = reweight.LossWeighter()
        outer_optimizer = torch.optim.Adam(weighter.parameters(), lr=3e-3)
        rw = reweight_accelerate.wrap(
            accelerator,
            model,
            weighter,
            losses,
            outer_loss,
            optimizer,
            outer_optimizer=outer_optimizer,
        )
        dev_batches = reweight_accelerate.dev_batches(accelerator, [dev])

    step, accumulated = 0, []
    for _ in range(EPOCHS):
        for batch in loader:
            with accelerator.accumulate(model):
                plain = (batch[2] * losses(model, batch)).mean() if dev is None else None
                accelerator.backward(rw.loss(batch) if plain is None else plain)
                optimizer.step()
                optimizer.zero_grad()
            accumulated.append(batch)
            if accelerator.sync_gradients:
                step += 1
                if dev is not None and step % EVERY == 0:
                    outer_optimizer.zero_grad()
                    rw.outer_backward(
                        reweight_accelerate.MicroBatches(accumulated), next(dev_batches)
                    )
                    outer_optimizer.step()
                accumulated = []
    return net, None if dev is None else rw.weights(train)


def compare(seed: int, mixed_precision: str) -> tuple[list[float], float, float]:
    """The accuracies of four trainings, and the mean weights of right and of wrong labels."""
    train, wrong, dev, test = split(seed)
    both = tuple(torch.cat(pair) for pair in zip(train, dev, strict=True))
    plain, _ = fit(train, seed, mixed_precision)
    together, _ = fit(both, seed, mixed_precision)
    learned, weights = fit(train, seed, mixed_precision, dev)
    assert weights is not None
    again, _ = fit((*both[:2], torch.cat([weights, dev[2]])), seed, mixed_precision)
    with torch.no_grad():
        found = [
            float((model(test[0]).argmax(1) == test[1]).float().mean())
            for model in (plain, together, learned, again)
        ]
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
    dev = x[n : n + 200], y[n : n + 200], one[n : n + 200]
    return train, wrong, dev, (x[n + 200 :], y[n + 200 :])


def main(arguments: list[str] | None = None) -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description="Learned weights in a loop of Accelerate.")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each kind")
    parser.add_argument("--mixed-precision", default="no", choices=["no", "bf16"])
    given = parser.parse_args(arguments)
    seeds: int = given.seeds
    torch.set_num_threads(1)  # for tensors this small, one thread is faster than several
    runs = [compare(seed, given.mixed_precision) for seed in range(seeds)]
    names = ("plain", "train and dev together", "learned weights", "the same weights, with dev")
    for name, values in zip(names, zip(*(run[0] for run in runs), strict=True), strict=True):
        each = torch.tensor(values)
        error = f" ± {float(each.std()) / seeds**0.5:.3f}" if seeds > 1 else ""
        print(f"{name:<27} test accuracy {float(each.mean()):.3f}{error}")
    right, wrong = (sum(run[k] for run in runs) / seeds for k in (1, 2))  # type: ignore[misc]
    print(f"mean weight: right labels {right:.2f}, wrong labels {wrong:.2f}")


if __name__ == "__main__":
    main()
