"""Learned weights on several processes: noisy labels of handwritten digits, under torchrun.

    torchrun --nproc-per-node 2 examples/data_parallel.py
    python examples/data_parallel.py

Both print the same table. It needs scikit-learn. What is not needed with one process is marked.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence

import torch
from sklearn.datasets import load_digits
from torch import Tensor, distributed, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import reweight

Batch = tuple[Tensor, Tensor]

NOISE, NUM_TEST, NUM_DEV, BATCH_SIZE = 0.4, 500, 200, 64


def data() -> tuple[Batch, Batch, Batch, Tensor]:
    """Train samples, dev samples, test samples, and which training labels are wrong."""
    generator = torch.Generator().manual_seed(0)
    pixels, digits = (torch.tensor(array) for array in load_digits(return_X_y=True))
    order = torch.randperm(len(digits), generator=generator)
    x, y = pixels[order].float() / 16.0, digits[order]
    wrong = torch.rand(len(y), generator=generator) < NOISE
    wrong[: NUM_TEST + NUM_DEV] = False
    y = torch.where(wrong, (y + torch.randint(1, 10, y.shape, generator=generator)) % 10, y)
    cuts = [NUM_TEST, NUM_TEST + NUM_DEV]
    test, dev, train = zip(x.tensor_split(cuts), y.tensor_split(cuts), strict=True)
    return train, dev, test, wrong[cuts[1] :]


def batches(samples: Batch, rank: int, size: int, seed: int) -> Iterator[Batch]:
    """This process's part of every batch of one epoch; all processes draw the same order."""
    x, y = samples
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    for chosen in torch.split(order, BATCH_SIZE):
        own = chosen[rank::size]
        yield x[own], y[own]


def losses(model: nn.Module, batch: Batch) -> Tensor:
    """One loss per sample, ``[B]``."""
    return cross_entropy(model(batch[0]), batch[1], reduction="none")


def outer_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The dev loss."""
    return losses(model, batch).mean()


def main(argv: Sequence[str] | None = None) -> None:
    """Train a network on weighted samples, and print what came out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=20)
    epochs = parser.parse_args(argv).epochs
    rank, size = 0, int(os.environ.get("WORLD_SIZE", "1"))
    if size > 1:  # many processes
        distributed.init_process_group("gloo")
        rank = distributed.get_rank()

    train, dev, test, wrong = data()
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    if size > 1:  # many processes
        model = DistributedDataParallel(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    weighter = reweight.LossWeighter()
    outer_optimizer = torch.optim.Adam(weighter.parameters(), lr=1e-3)
    rw = reweight.wrap(model, weighter, losses, outer_loss, optimizer)

    for epoch in range(epochs):
        pairs = zip(
            batches(train, rank, size, seed=epoch),
            (part for i in range(9) for part in batches(dev, rank, size, seed=1000 + epoch + i)),
            strict=False,  # there are more dev batches than train batches
        )
        for batch, dev_batch in pairs:
            optimizer.zero_grad()
            rw.loss(batch).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            outer_optimizer.zero_grad()
            rw.outer_backward(batch, dev_batch)
            outer_optimizer.step()

    if rank == 0:
        with torch.no_grad():
            right = (model(test[0]).argmax(1) == test[1]).float().mean()
        weights = rw.weights(train)
        print(f"test accuracy                 {right:.3f}")
        print(f"mean weight of right labels   {weights[~wrong].mean():.3f}")
        print(f"mean weight of wrong labels   {weights[wrong].mean():.3f}")
    if size > 1:  # many processes
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
