"""Dev batches from the training data: where they tell samples apart, and where they can't.

    python examples/recipes/no_dev_set.py [--seeds 5]

Two problems on scikit-learn's digits. In the first, 100 samples are of the task and 1,000 come from
ten sources, five of which number the digits in another way. In the second, 40 % of the labels are
wrong. It takes a minute for each seed on a CPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import reweight

STEPS, OUTER_EVERY = 1500, 5
GROUP_LR, LOSS_LR = 1e-2, 1e-2
Part = tuple[Tensor, ...]
Result = dict[str, float]


def digits(seed: int) -> tuple[Tensor, Tensor]:
    """Pixels and labels in a random order, which also seeds what follows."""
    torch.manual_seed(seed)
    data = load_digits()
    order = torch.randperm(len(data.target))
    pixels = torch.tensor(data.data / 16 - 0.5, dtype=torch.float32)[order]
    return pixels, torch.tensor(data.target)[order]


def fit(
    losses: Callable[[nn.Module, Part], reweight.Losses],
    dev_loss: Callable[[nn.Module, Part], Tensor],
    weighter: reweight.SampleWeighter,
    pairs: Iterator[tuple[Part, Part | None]],
    *,
    outer_lr: float = 0.0,
) -> nn.Module:
    """An ordinary loop; with an ``outer_lr`` it also learns the weights."""
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, weight_decay=1e-4)
    rw = reweight.wrap(model, weighter, losses, dev_loss, optimizer)
    outer_optimizer = torch.optim.Adam(weighter.parameters(), lr=outer_lr)
    for step in range(STEPS):
        batch, dev_batch = next(pairs)
        optimizer.zero_grad()
        rw.loss(batch).backward()
        optimizer.step()
        if outer_lr and step % OUTER_EVERY == 0:
            outer_optimizer.zero_grad()
            rw.outer_backward(batch, dev_batch)
            outer_optimizer.step()
    return model


def accuracy(model: nn.Module, pixels: Tensor, labels: Tensor) -> float:
    """The share of samples that are classified correctly."""
    with torch.no_grad():
        return float((model(pixels).argmax(1) == labels).float().mean())


def forever(sampler: reweight.ReorderReuseSampler | reweight.SplitSampler) -> Iterator[Part]:
    """Pairs of indices, epoch after epoch."""
    while True:
        yield from sampler


def sources(seed: int) -> Result:
    """The task's own samples are few; others come from ten sources, of which five do harm."""
    pixels, labels = digits(seed)
    task, task_labels = pixels[:100], labels[:100]
    test = pixels[1100:], labels[1100:]
    source, group = torch.arange(100, 1100), torch.arange(1000) % 10
    harmful = group >= 5
    shifted = (labels + 3) % 10  # another numbering of the digits

    def losses(model: nn.Module, batch: Part) -> reweight.Losses:
        rows, of_source = batch
        mine = cross_entropy(model(task[rows]), task_labels[rows])
        given = torch.where(harmful, shifted[source], labels[source])[of_source]
        others = cross_entropy(model(pixels[source[of_source]]), given, reduction="none")
        return reweight.Losses(others, fixed=mine, inputs=group[of_source])

    def dev_loss(model: nn.Module, rows: Part) -> Tensor:
        return cross_entropy(model(task[rows[0]]), task_labels[rows[0]])

    def score(
        kept: Tensor,
        outer_lr: float = 0.0,
        weights: Tensor | None = None,
        held_out: bool = False,
    ) -> tuple[float, Tensor]:
        sampler = (
            reweight.SplitSampler(100, 0.2, 32, dev_batch_size=20, seed=seed)
            if held_out
            else reweight.ReorderReuseSampler(100, 32, dev_batch_size=64, seed=seed)
        )
        torch.manual_seed(seed)
        weighter = reweight.GroupWeighter(10) if weights is None else Fixed(weights)
        candidates = kept.nonzero().squeeze(1)
        pairs = (
            ((rows, candidates[torch.randint(len(candidates), (100,))]), (dev_rows,))
            for rows, dev_rows in forever(sampler)
        )
        model = fit(losses, dev_loss, weighter, pairs, outer_lr=outer_lr)
        with torch.no_grad():
            return accuracy(model, *test), weighter(torch.zeros(10), torch.arange(10))

    every = torch.ones(1000, dtype=torch.bool)
    reused, weights = score(every, outer_lr=GROUP_LR)
    return {
        "task only": score(every, weights=torch.zeros(10))[0],
        "both together": score(every)[0],
        "learned, dev rows held out": score(every, outer_lr=GROUP_LR, held_out=True)[0],
        "learned, dev rows reused": reused,
        "retrained, weights fixed": score(every, weights=weights)[0],
        "retrained on sources above the mean weight": score((weights > weights.mean())[group])[0],
        "oracle: the five good sources": score(~harmful)[0],
        "mean weight of a good source": float(weights[:5].mean()),
        "mean weight of a harmful one": float(weights[5:].mean()),
    }


class Fixed(reweight.SampleWeighter):
    """Weights that are not learned: one number for each group."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights)

    def forward(self, losses: Tensor, inputs: Tensor) -> Tensor:
        return self.weights[inputs]


def wrong_labels(seed: int) -> Result:
    """40 % of the labels are wrong, and so are those of dev samples from the same data."""
    pixels, labels = digits(seed)
    test = pixels[1100:], labels[1100:]
    wrong = torch.rand(1000) < 0.4
    noisy = torch.where(wrong, (labels[:1000] + torch.randint(1, 10, (1000,))) % 10, labels[:1000])
    checked = pixels[1000:1100], labels[1000:1100]

    def losses(model: nn.Module, batch: Part) -> reweight.Losses:
        return reweight.Losses(cross_entropy(model(batch[0]), batch[1], reduction="none"))

    def dev_loss(model: nn.Module, batch: Part) -> Tensor:
        return cross_entropy(model(batch[0]), batch[1])

    def score(outer_lr: float, dev: Part | None = None) -> tuple[float, Tensor]:
        torch.manual_seed(seed)
        weighter = reweight.LossWeighter()
        sampler = reweight.ReorderReuseSampler(1000, 100, seed=seed)
        pairs = (
            ((pixels[rows], noisy[rows]), dev or (pixels[dev_rows], noisy[dev_rows]))
            for rows, dev_rows in forever(sampler)
        )
        model = fit(losses, dev_loss, weighter, pairs, outer_lr=outer_lr)
        with torch.no_grad():
            of_each = weighter(losses(model, (pixels[:1000], noisy)).weighted)
        return accuracy(model, *test), of_each

    reused, weights = score(LOSS_LR)
    return {
        "plain": score(0.0)[0],
        "learned, dev rows reused": reused,
        "learned, dev rows checked by hand": score(LOSS_LR, checked)[0],
        "mean weight of a right label, reused": float(weights[~wrong].mean()),
        "mean weight of a wrong label, reused": float(weights[wrong].mean()),
    }


def main(arguments: list[str] | None = None) -> None:
    """Print a table of each problem over seeds."""
    parser = argparse.ArgumentParser(description="Dev batches from the training data.")
    parser.add_argument("--seeds", type=int, default=5)
    seeds = parser.parse_args(arguments).seeds
    torch.set_num_threads(1)  # for tensors this small, one thread is faster than several
    for name, problem in (("ten sources", sources), ("wrong labels", wrong_labels)):
        results = [problem(seed) for seed in range(seeds)]
        print(f"| {name} | mean over seeds |\n| --- | ---: |")
        for row in results[0]:
            values = torch.tensor([result[row] for result in results])
            error = f" ± {values.std() / seeds**0.5:.3f}" if seeds > 1 else ""
            print(f"| {row} | {values.mean():.3f}{error} |")
        print()


if __name__ == "__main__":
    main()
