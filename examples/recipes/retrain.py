"""Search weights, then train a new model with them: digits, 40 % of the training labels are wrong.

    python examples/recipes/retrain.py [--seeds 5] [--save FILE] [--plot FILE]

It needs scikit-learn, and matplotlib for the plot. It prints the table and the removal curve of
docs/recipes/retrain.md.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

import reweight
from reweight.valuation import (
    Collector,
    SampleValues,
    WeightedTrainAndDev,
    collect,
    prune,
    removal_curve,
)

Batch = tuple[Tensor, Tensor, Tensor]  # features [B, 64], labels [B], ids [B]
Data = Dataset[Any]  # of single samples (features, label, id)

NOISE, NUM_CLASSES, NUM_TRAIN, NUM_DEV = 0.4, 10, 1000, 200
STEPS, BATCH_SIZE, LEARNING_RATE = 600, 50, 3e-3  # of every training, whatever its data
# The search: which weighter, its outer learning rate, and the steps before the first outer step.
WEIGHTER: Callable[[], reweight.SampleWeighter] = reweight.LossWeighter
OUTER_LEARNING_RATE, WARMUP = 1e-3, 60

BY: tuple[Literal["influence", "weight"], ...] = ("influence", "weight")
Ids = NDArray[Any]
ALL = np.arange(NUM_TRAIN)
EQUAL = SampleValues(ALL, np.ones(NUM_TRAIN))


@dataclass
class Task:
    """Data sets; the ids of training samples are their positions."""

    train: Data
    labels: Tensor  # of the training samples, as noisy as they are
    wrong: Tensor  # which of them are wrong; the methods do not see it
    dev: Data
    test: Batch


def make_task(seed: int) -> Task:
    """Another split and other wrong labels for each seed."""
    generator = torch.Generator().manual_seed(seed)
    digits = load_digits()
    features = torch.tensor(digits.data / 16.0, dtype=torch.float32)
    labels = torch.tensor(digits.target, dtype=torch.int64)
    order = torch.randperm(len(labels), generator=generator)
    train, dev, test = order.tensor_split([NUM_TRAIN, NUM_TRAIN + NUM_DEV])
    wrong = torch.rand(NUM_TRAIN, generator=generator) < NOISE
    shift = torch.randint(1, NUM_CLASSES, (NUM_TRAIN,), generator=generator)
    noisy = torch.where(wrong, (labels[train] + shift) % NUM_CLASSES, labels[train])
    return Task(
        TensorDataset(features[train], noisy, torch.arange(NUM_TRAIN)),
        noisy,
        wrong,
        TensorDataset(features[dev], labels[dev], -1 - torch.arange(NUM_DEV)),
        (features[test], labels[test], torch.empty(0)),
    )


def losses(model: nn.Module, batch: Batch) -> Tensor:
    """One loss per sample, ``[B]``."""
    return cross_entropy(model(batch[0]), batch[1], reduction="none")


def outer_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The dev loss."""
    return losses(model, batch).mean()


def new_model(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model that knows nothing yet, and its optimizer."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, NUM_CLASSES))
    return model, torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, weight_decay=1e-4)


def batches(data: Dataset[Any]) -> Iterator[Any]:
    """The batches of one training, epoch after epoch."""
    loader = DataLoader(data, batch_size=BATCH_SIZE, shuffle=True)
    endless = itertools.chain.from_iterable(itertools.repeat(loader))
    return itertools.islice(endless, STEPS)


def search(task: Task, seed: int) -> tuple[nn.Module, SampleValues]:
    """The first training: it learns the weights."""
    model, optimizer = new_model(seed)
    weighter = WEIGHTER()
    outer_optimizer = torch.optim.Adam(weighter.parameters(), lr=OUTER_LEARNING_RATE)
    rw = reweight.wrap(model, weighter, losses, outer_loss, optimizer)
    dev_batch = next(iter(DataLoader(task.dev, batch_size=NUM_DEV)))
    collector = Collector(rw)
    for step, batch in enumerate(batches(task.train)):
        loss = rw.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step < WARMUP:
            # While all weights are equal, the influence tells samples apart. Later it says only
            # what the weights have left to do.
            result = rw.hypergradient(batch, dev_batch)
            collector.add(batch[2], result, rw.weights(batch))
        else:
            outer_optimizer.zero_grad()
            rw.outer_backward(batch, dev_batch)
            outer_optimizer.step()
    model.eval()
    values = collect(rw, DataLoader(task.train, batch_size=250), ids=lambda batch: batch[2])
    return model, values.with_influence_of(collector.values())


def retrain(
    task: Task, ids: Ids, seed: int, values: SampleValues = EQUAL, *, dev: bool = True
) -> nn.Module:
    """The second training: a new model on the samples ``ids`` with their weights, and on dev."""
    train = Subset(task.train, ids.tolist())
    data = WeightedTrainAndDev(train, task.dev if dev else Subset(task.dev, []), values, ids=ids)
    model, optimizer = new_model(seed)
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


def compare(task: Task, seed: int) -> tuple[dict[str, float], SampleValues]:
    """The test accuracy of every way, and what the search learned."""
    searched, values = search(task, seed)
    kept = prune(values, 1.0 - NOISE, strata=task.labels)
    right = np.flatnonzero(~task.wrong)
    models = {
        "plain": retrain(task, ALL, seed, dev=False),
        "dev only": retrain(task, ALL[:0], seed),
        "both together": retrain(task, ALL, seed),
        "learned weights, one training": searched,
        "learned weights, retrained": retrain(task, ALL, seed, values),
        "pruned, retrained": retrain(task, kept.ids, seed),
        "right labels only (oracle)": retrain(task, right, seed),
    }
    return {name: accuracy(model, task.test) for name, model in models.items()}, values


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
    """Print the table and the removal curve."""
    parser = argparse.ArgumentParser(description="Search weights, then train with them.")
    parser.add_argument("--seeds", type=int, default=5, help="how many (at least 2)")
    parser.add_argument("--save", metavar="FILE", help="the values of seed 0: .parquet, .csv, .npz")
    parser.add_argument("--plot", metavar="FILE", help="plot the removal curve by influence")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # for tensors this small, one thread is faster than several

    tasks = [make_task(seed) for seed in range(options.seeds)]
    results = [compare(task, seed) for seed, task in enumerate(tasks)]
    print(table([row for row, _ in results]))
    found = [values for _, values in results]
    print(f"\nseed 0: {found[0]}")
    for name, wrong in (("right", False), ("wrong", True)):
        rows = (tasks[0].wrong == wrong).numpy()
        print(f"mean weight of {name} labels: {found[0].weights[rows].mean():.2f}")
    if options.save:
        found[0].save(options.save)

    def train_and_score(ids: Ids, seed: int) -> float:
        return accuracy(retrain(tasks[seed], ids, seed), tasks[seed].test)

    for by in BY:
        orders = [
            values.worst_first(by, strata=task.labels)
            for values, task in zip(found, tasks, strict=True)
        ]
        curve = removal_curve(train_and_score, orders.__getitem__, seeds=range(options.seeds))
        print(f"\ntrained on the dev samples and a part of the others; removed by {by}\n{curve}")
        if options.plot and by == "influence":
            curve.plot(options.plot, score="test accuracy")


if __name__ == "__main__":
    main()
