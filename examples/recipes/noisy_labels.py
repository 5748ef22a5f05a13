"""Noisy labels: three data sets of scikit-learn, 40 % of the training labels are wrong.

    python examples/recipes/noisy_labels.py [--seeds 5] [--data digits]

It needs scikit-learn, and prints the table of docs/recipes/noisy-labels.md.
"""

from __future__ import annotations

import argparse
import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from sklearn import datasets
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

import reweight
from reweight.valuation import SampleValues, WeightedTrainAndDev, collect

Batch = tuple[Tensor, Tensor, Tensor]  # features [B, F], labels [B], ids [B]

NOISE, NUM_DEV, TEST_SHARE = 0.4, 200, 0.3
STEPS, BATCH_SIZE = 1000, 100  # of every training, whatever its data

# Features and labels.
DATA: dict[str, Callable[[], tuple[Any, Any]]] = {
    "digits": lambda: datasets.load_digits(return_X_y=True),
    "breast cancer": lambda: datasets.load_breast_cancer(return_X_y=True),
    "classification": lambda: datasets.make_classification(
        4000, 20, n_informative=8, n_redundant=4, n_classes=4, random_state=0
    ),
}


def split(name: str, seed: int) -> tuple[Dataset[Any], Dataset[Any], Batch, Tensor]:
    """Train samples, dev samples, the test batch, and which training labels are wrong."""
    generator = torch.Generator().manual_seed(seed)
    features, labels = (torch.tensor(array) for array in DATA[name]())
    order = torch.randperm(len(labels), generator=generator)
    num_test = int(TEST_SHARE * len(labels))
    test, dev, train = order.tensor_split([num_test, num_test + NUM_DEV])
    spread = features[train].std(0)
    # Some pixels are black in all training samples, and not in all others.
    features = (features - features[train].mean(0)) / spread.where(spread > 0, 1.0)
    features, num_classes = features.float(), int(labels.max()) + 1
    wrong = torch.rand(len(train), generator=generator) < NOISE
    shift = torch.randint(1, num_classes, train.shape, generator=generator)
    noisy = torch.where(wrong, (labels[train] + shift) % num_classes, labels[train])
    return (
        TensorDataset(features[train], noisy, torch.arange(len(train))),
        TensorDataset(features[dev], labels[dev], -1 - torch.arange(len(dev))),
        (features[test], labels[test], torch.empty(0)),
        wrong,
    )


def losses(model: nn.Module, batch: Batch) -> Tensor:
    """One loss per sample, ``[B]``."""
    return cross_entropy(model(batch[0]), batch[1], reduction="none")


def outer_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The dev loss."""
    return losses(model, batch).mean()


def new_model(test: Batch, seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model that knows nothing yet, and its optimizer."""
    torch.manual_seed(seed)
    num_features, num_classes = test[0].shape[1], int(test[1].max()) + 1
    model = nn.Sequential(nn.Linear(num_features, 64), nn.ReLU(), nn.Linear(64, num_classes))
    return model, torch.optim.Adam(model.parameters(), lr=3e-3, weight_decay=1e-4)


def batches(data: Dataset[Any]) -> Iterator[Any]:
    """The batches of one training, epoch after epoch."""
    loader = DataLoader(data, batch_size=BATCH_SIZE, shuffle=True)
    return itertools.islice(itertools.chain.from_iterable(itertools.repeat(loader)), STEPS)


def search(
    train: Dataset[Any], dev: Dataset[Any], test: Batch, seed: int
) -> tuple[nn.Module, SampleValues]:
    """The loop of the README, with its settings; also the weight of every training sample."""
    model, optimizer = new_model(test, seed)
    weighter = reweight.LossWeighter()
    outer_optimizer = torch.optim.Adam(weighter.parameters(), lr=1e-3)
    rw = reweight.wrap(model, weighter, losses, outer_loss, optimizer)
    dev_batch = next(iter(DataLoader(dev, batch_size=NUM_DEV)))
    for batch in batches(train):
        loss = rw.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        outer_optimizer.zero_grad()
        rw.outer_backward(batch, dev_batch)
        outer_optimizer.step()
    return model, collect(rw, DataLoader(train, batch_size=1000), ids=lambda batch: batch[2])


def fit(data: Dataset[Any], test: Batch, seed: int) -> nn.Module:
    """An ordinary training on pairs (sample, weight)."""
    model, optimizer = new_model(test, seed)
    for batch, weights in batches(data):
        loss = (weights * losses(model, batch)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@torch.no_grad()
def accuracy(model: nn.Module, batch: Batch) -> float:
    """The share of samples that are classified correctly."""
    return float((model(batch[0]).argmax(1) == batch[1]).double().mean())


def compare(name: str, seed: int) -> dict[str, float]:
    """The test accuracy of every way."""
    train, dev, test, wrong = split(name, seed)
    searched, values = search(train, dev, test, seed)
    every = np.arange(len(wrong))
    equal = SampleValues(every, np.ones(len(wrong)))
    nothing = Subset(dev, [])

    def on(ids: Any, dev: Dataset[Any], values: SampleValues = equal) -> float:
        chosen = Subset(train, ids.tolist())
        return accuracy(fit(WeightedTrainAndDev(chosen, dev, values, ids=ids), test, seed), test)

    return {
        "plain": on(every, nothing),
        "dev only": on(every[:0], dev),
        "both together": on(every, dev),
        "learned weights, one training": accuracy(searched, test),
        "learned weights, retrained": on(every, dev, values),
        "right labels only (oracle)": on(np.flatnonzero(~wrong), dev),
    }


def table(rows: list[dict[str, float]]) -> str:
    """Mean and standard error over the seeds, and the difference from "both together"."""
    lines = [f"{'way':<30}  {'test accuracy':>14}  {'- both together':>16}"]
    both = np.array([row["both together"] for row in rows])
    for name in rows[0]:
        scores = np.array([row[name] for row in rows])
        cells = [scores, scores - both]
        mean, gain = (f"{x.mean():.3f} ± {x.std(ddof=1) / len(x) ** 0.5:.3f}" for x in cells)
        lines.append(f"{name:<30}  {mean:>14}  {gain if name != 'both together' else '':>16}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Print a table for each data set."""
    parser = argparse.ArgumentParser(description="Noisy labels, with the README's settings.")
    parser.add_argument("--seeds", type=int, default=5, help="how many (at least 2)")
    parser.add_argument("--data", choices=DATA, action="append", help="default: all")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # for tensors this small, one thread is faster than several
    for name in options.data or DATA:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            rows = [compare(name, seed) for seed in range(options.seeds)]
        print(f"{name}\n{table(rows)}")
        for text in sorted({str(warning.message) for warning in told}):
            print(f"warned: {text}")
        print(flush=True)


if __name__ == "__main__":
    main()
