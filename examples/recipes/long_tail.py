"""A long tail: the classes of scikit-learn's digits, each rarer than the one before.

    python examples/recipes/long_tail.py [--seeds 5]

The dev set is balanced. It needs scikit-learn, and prints the table of docs/recipes/long-tail.md.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import reweight

Batch = tuple[Tensor, Tensor]  # pixels [B, 64], classes [B]

NUM_CLASSES, COMMON, IMBALANCE = (
    10,
    110,
    20,
)  # samples of the most common class; its ratio to the rarest
NUM_DEV, NUM_TEST = 10, 50  # of each class
STEPS, BATCH_SIZE = 1000, 50  # of every training, whatever its data
OUTER_EVERY, OUTER_LR = 5, 5e-2


def split(seed: int) -> dict[str, Batch]:
    """Train, dev and test samples, and all those that the train samples were drawn from."""
    generator = torch.Generator().manual_seed(seed)
    data = load_digits()
    pixels, labels = torch.tensor(data.data / 16 - 0.5).float(), torch.tensor(data.target)
    parts: dict[str, list[Tensor]] = {"test": [], "dev": [], "train": [], "balanced": []}
    # Which class is rare differs from seed to seed.
    for rank, label in enumerate(torch.randperm(NUM_CLASSES, generator=generator)):
        of_class = (labels == label).nonzero()[:, 0]
        shuffled = of_class[torch.randperm(len(of_class), generator=generator)]
        test, dev, rest = shuffled.tensor_split([NUM_TEST, NUM_TEST + NUM_DEV])
        kept = round(COMMON * IMBALANCE ** (-rank / (NUM_CLASSES - 1)))
        for name, rows in zip(parts, (test, dev, rest[:kept], rest[:COMMON]), strict=True):
            parts[name].append(rows)
    rows = {name: torch.cat(chosen) for name, chosen in parts.items()}
    return {name: (pixels[chosen], labels[chosen]) for name, chosen in rows.items()}


def losses(model: nn.Module, batch: Batch) -> reweight.Losses:
    """One loss per sample; its group is its class."""
    pixels, labels = batch
    return reweight.Losses(cross_entropy(model(pixels), labels, reduction="none"), inputs=labels)


def outer_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The dev loss."""
    return losses(model, batch).weighted.mean()


def new_model(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model that knows nothing yet, and its optimizer."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, NUM_CLASSES))
    return model, torch.optim.Adam(model.parameters(), lr=3e-3, weight_decay=1e-4)


def batches(size: int) -> Iterator[Tensor]:
    """The rows of each batch of one training, epoch after epoch."""
    epochs = (torch.randperm(size).split(BATCH_SIZE) for _ in itertools.count())
    return itertools.islice(itertools.chain.from_iterable(epochs), STEPS)


def search(train: Batch, dev: Batch, seed: int) -> tuple[nn.Module, Tensor]:
    """The loop of the README; also the weight of each class."""
    model, optimizer = new_model(seed)
    weighter = reweight.GroupWeighter(NUM_CLASSES, sizes=train[1].bincount().tolist())
    outer_optimizer = torch.optim.Adam(weighter.parameters(), lr=OUTER_LR)
    rw = reweight.wrap(model, weighter, losses, outer_loss, optimizer)
    for step, rows in enumerate(batches(len(train[1]))):
        batch = train[0][rows], train[1][rows]
        loss = rw.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % OUTER_EVERY == 0:
            outer_optimizer.zero_grad()
            rw.outer_backward(batch, dev)
            outer_optimizer.step()
    return model, weighter.table().detach()


def fit(data: Batch, weights: Tensor, seed: int) -> nn.Module:
    """An ordinary training with a fixed weight per sample."""
    model, optimizer = new_model(seed)
    for rows in batches(len(weights)):
        batch = data[0][rows], data[1][rows]
        loss = (weights[rows] * losses(model, batch).weighted).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@torch.no_grad()
def accuracy(model: nn.Module, batch: Batch) -> float:
    """The share of samples that are classified correctly."""
    return float((model(batch[0]).argmax(1) == batch[1]).double().mean())


def balanced(labels: Tensor) -> Tensor:
    """One over the frequency of each sample's class, with a mean of 1."""
    weights = 1.0 / labels.bincount()[labels]
    return weights / weights.mean()


def compare(seed: int) -> dict[str, float]:
    """The test accuracy of every way."""
    parts = split(seed)
    train, dev, test = parts["train"], parts["dev"], parts["test"]
    both = torch.cat([train[0], dev[0]]), torch.cat([train[1], dev[1]])
    searched, by_class = search(train, dev, seed)
    learned = torch.cat([by_class[train[1]], torch.ones(len(dev[1]))])

    def score(data: Batch, weights: Tensor | None = None) -> float:
        equal = torch.ones(len(data[1]))
        return accuracy(fit(data, equal if weights is None else weights, seed), test)

    return {
        "plain": score(train),
        "dev only": score(dev),
        "both together": score(both),
        "both, weights of 1 / frequency": score(both, balanced(both[1])),
        "learned weights, one training": accuracy(searched, test),
        "learned weights, retrained": score(both, learned),
        "balanced data (oracle)": score(parts["balanced"]),
    }


def table(rows: list[dict[str, float]]) -> str:
    """Mean and standard error over the seeds, and the difference from "both together"."""
    lines = [f"{'way':<32}  {'test accuracy':>14}  {'- both together':>16}"]
    both = np.array([row["both together"] for row in rows])
    for name in rows[0]:
        scores = np.array([row[name] for row in rows])
        cells = [scores, scores - both]
        mean, gain = (f"{x.mean():.3f} ± {x.std(ddof=1) / len(x) ** 0.5:.3f}" for x in cells)
        lines.append(f"{name:<32}  {mean:>14}  {gain if name != 'both together' else '':>16}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Weights per class for a long tail.")
    parser.add_argument("--seeds", type=int, default=5, help="how many (at least 2)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # for tensors this small, one thread is faster than several
    print(table([compare(seed) for seed in range(options.seeds)]))


if __name__ == "__main__":
    main()
