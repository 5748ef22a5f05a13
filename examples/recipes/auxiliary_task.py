"""Auxiliary tasks: a few labelled digits, and four other questions about more of them.

    python examples/recipes/auxiliary_task.py [--seeds 5]

Two of the four questions have random answers. It needs scikit-learn, and prints the table of
docs/recipes/auxiliary-task.md.
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

Main = tuple[Tensor, Tensor]  # pixels [M, 64], digits [M]
Auxiliary = tuple[Tensor, Tensor, Tensor]  # pixels [B, 64], answers [B], which question [B]
Batch = tuple[Main, Auxiliary]

NUM_MAIN, NUM_DEV, NUM_AUXILIARY = 50, 100, 1000
NUM_TASKS = 4  # even or odd, with a loop or without; the last two have random answers
STEPS, BATCH_SIZE = 300, 50  # of each kind of samples
OUTER_EVERY, OUTER_LR = 5, 5e-2
GRID = (0.0, 0.1, 0.3, 1.0, 3.0)  # the fixed weights that are tried


def split(seed: int) -> tuple[Main, Main, Main, Auxiliary]:
    """Main, dev, test and auxiliary samples."""
    generator = torch.Generator().manual_seed(seed)
    data = load_digits()
    order = torch.randperm(len(data.target), generator=generator)
    pixels = torch.tensor(data.data / 16 - 0.5).float()[order]
    digits = torch.tensor(data.target)[order]
    ends = [NUM_MAIN, NUM_MAIN + NUM_DEV, NUM_MAIN + NUM_DEV + NUM_AUXILIARY]
    main, dev, auxiliary, test = zip(
        pixels.tensor_split(ends), digits.tensor_split(ends), strict=True
    )
    shown, seen = auxiliary
    question = torch.randint(NUM_TASKS, seen.shape, generator=generator)
    loop = (seen[:, None] == torch.tensor([0, 6, 8, 9])).any(1).long()
    chance = torch.randint(2, (2, len(seen)), generator=generator)
    answers = torch.stack([seen % 2, loop, *chance]).gather(0, question[None])[0]
    return main, dev, test, (shown, answers, question)


class Model(nn.Module):
    """One hidden layer for all tasks, and an output layer for each."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Sequential(nn.Linear(64, 64), nn.ReLU())
        self.digit, self.answer = nn.Linear(64, 10), nn.Linear(64, 2 * NUM_TASKS)

    def losses(self, batch: Batch) -> reweight.Losses:
        """The loss of the main task is fixed; the weighted losses are those of the answers."""
        main, (pixels, answers, question) = batch
        scores = self.answer(self.shared(pixels)).view(-1, NUM_TASKS, 2)
        scores = scores[torch.arange(len(question)), question]
        return reweight.Losses(
            weighted=cross_entropy(scores, answers, reduction="none"),
            fixed=self.outer_loss(main),
            inputs=question,
        )

    def outer_loss(self, batch: Main) -> Tensor:
        """The loss of the main task."""
        return cross_entropy(self.digit(self.shared(batch[0])), batch[1])


def rows(size: int) -> Iterator[Tensor]:
    """The rows of each batch of one training, epoch after epoch."""
    epochs = (torch.randperm(size).split(BATCH_SIZE) for _ in itertools.count())
    return itertools.islice(itertools.chain.from_iterable(epochs), STEPS)


def fit(
    main: Main,
    auxiliary: Auxiliary,
    weighter: reweight.SampleWeighter,
    seed: int,
    dev: Main | None = None,
) -> Model:
    """A training with the weights of the weighter, which is trained too if there is a dev set."""
    torch.manual_seed(seed)
    model = Model()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, weight_decay=1e-4)
    outer_optimizer = torch.optim.Adam(weighter.parameters(), lr=OUTER_LR)
    rw = reweight.wrap(model, weighter, optimizer=optimizer)
    pairs = zip(rows(len(main[1])), rows(len(auxiliary[1])), strict=True)
    for step, (own, other) in enumerate(pairs):
        pixels, answers, question = auxiliary
        batch = (main[0][own], main[1][own]), (pixels[other], answers[other], question[other])
        loss = rw.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if dev is not None and step % OUTER_EVERY == 0:
            outer_optimizer.zero_grad()
            rw.outer_backward(batch, dev)
            outer_optimizer.step()
    return model


@torch.no_grad()
def accuracy(model: Model, batch: Main) -> float:
    """The share of digits that are recognized."""
    scores = model.digit(model.shared(batch[0]))
    return float((scores.argmax(1) == batch[1]).double().mean())


class Given(reweight.SampleWeighter):
    """A weight for each auxiliary task, which is not learned."""

    def __init__(self, *weights: float) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor(weights, dtype=torch.float32))

    def forward(self, losses: Tensor, inputs: Tensor) -> Tensor:
        """Look the weights up."""
        return self.weights[inputs]


def compare(seed: int) -> dict[str, float]:
    """The test accuracy of every way, and what was learned."""
    main, dev, test, auxiliary = split(seed)
    both = torch.cat([main[0], dev[0]]), torch.cat([main[1], dev[1]])
    one, each = reweight.ConstantWeighter(), reweight.GroupWeighter(NUM_TASKS, learn_scale=True)
    with_one, with_each = (fit(main, auxiliary, w, seed, dev) for w in (one, each))

    def on(own: Main, weighter: reweight.SampleWeighter) -> float:
        return accuracy(fit(own, auxiliary, weighter, seed), test)

    def dev_loss(weight: float) -> float:
        model = fit(main, auxiliary, Given(*[weight] * NUM_TASKS), seed)
        return float(model.outer_loss(dev).detach())

    best = min(GRID, key=dev_loss)
    useful = each.table().detach()
    return {
        "plain": on(main, Given(1, 1, 1, 1)),
        "dev only": on(dev, Given(0, 0, 0, 0)),
        "main and dev, no auxiliary task": on(both, Given(0, 0, 0, 0)),
        "both together": on(both, Given(1, 1, 1, 1)),
        "best fixed weight, with dev": on(both, Given(*[best] * NUM_TASKS)),
        "one learned weight, one training": accuracy(with_one, test),
        "one learned weight, retrained": on(both, one),
        "weight per task, one training": accuracy(with_each, test),
        "weight per task, retrained": on(both, each),
        "useful tasks only (oracle)": on(both, Given(1, 1, 0, 0)),
        "* fixed weight": best,
        "* one learned weight": float(one(torch.zeros(1)).detach()),
        "* weight of a useful task": float(useful[:2].mean()),
        "* weight of a useless task": float(useful[2:].mean()),
    }


def table(rows: list[dict[str, float]]) -> str:
    """Mean and standard error over the seeds, and the difference from "both together"."""
    lines = [f"{'way':<32}  {'test accuracy':>14}  {'- both together':>16}"]
    both = np.array([row["both together"] for row in rows])
    for name in rows[0]:
        scores = np.array([row[name] for row in rows])
        cells = [scores, scores - both]
        mean, gain = (f"{x.mean():.3f} ± {x.std(ddof=1) / len(x) ** 0.5:.3f}" for x in cells)
        compared = name != "both together" and not name.startswith("*")
        lines.append(f"{name:<32}  {mean:>14}  {gain if compared else '':>16}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Print the table; lines with a star are no accuracies."""
    parser = argparse.ArgumentParser(description="Weights for auxiliary tasks.")
    parser.add_argument("--seeds", type=int, default=5, help="how many (at least 2)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # for tensors this small, one thread is faster than several
    print(table([compare(seed) for seed in range(options.seeds)]))


if __name__ == "__main__":
    main()
