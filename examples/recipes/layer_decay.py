"""Weight decay for each layer, learned on dev samples by the functional core.

    python examples/recipes/layer_decay.py [--seeds 5]

A network reads the pixels of scikit-learn's digits by one layer and as many columns of noise by
another one. Each weight matrix has its own penalty. A grid over three penalties has 125 points;
the hypergradient finds them in one training. It takes half a minute for each seed on a CPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.func import vmap
from torch.nn.functional import cross_entropy

import reweight

LAYERS = ("pixels", "noise", "output")
HIDDEN, CLASSES = 64, 10
STEPS = 600  # of each training
OUTER_EVERY, OUTER_LR = 10, 0.2
Params = dict[str, Tensor]
Batch = tuple[Tensor, Tensor, Tensor]


def logits(params: Params, batch: Batch) -> Tensor:
    """The network, as a function of its parameters."""
    pixels, noise, _ = batch
    hidden = pixels @ params["pixels"] + noise @ params["noise"] + params["bias"]
    return hidden.tanh() @ params["output"] + params["output bias"]


def loss(params: Params, batch: Batch) -> Tensor:
    """The mean cross entropy, without penalties."""
    return cross_entropy(logits(params, batch), batch[2])


@dataclass
class Problem:
    """The two losses of the functional core: of parameters, and of the log of each penalty."""

    train: Batch
    dev: Batch

    def inner(self, params: Params, log_decay: Params) -> Tensor:
        """The training loss: the fit, and half the penalty times the squares of each layer."""
        penalties = [log_decay[name].exp() * params[name].square().sum() for name in LAYERS]
        return loss(params, self.train) + 0.5 * torch.stack(penalties).sum()

    def outer(self, params: Params, log_decay: Params) -> Tensor:
        """The dev loss, which the penalties are to reduce."""
        return loss(params, self.dev)


def initial(copies: int, seed: int) -> Params:
    """The same random parameters for each of several trainings, stacked."""
    torch.manual_seed(seed)
    sizes = {"pixels": (64, HIDDEN), "noise": (64, HIDDEN), "output": (HIDDEN, CLASSES)}
    params = {name: torch.randn(size) / size[0] ** 0.5 for name, size in sizes.items()}
    params |= {"bias": torch.zeros(HIDDEN), "output bias": torch.zeros(CLASSES)}
    return {
        name: nn.Parameter(value.expand(copies, *value.shape).clone())
        for name, value in params.items()
    }


def train(problem: Problem, log_decays: Tensor, seed: int) -> Params:
    """Train one network for each row of penalties [C, layers]; return their parameters."""
    params = initial(len(log_decays), seed)
    decays = dict(zip(LAYERS, log_decays.unbind(1), strict=True))
    optimizer = torch.optim.Adam(params.values(), lr=1e-2)
    for _ in range(STEPS):
        optimizer.zero_grad()
        vmap(problem.inner)(params, decays).sum().backward()
        optimizer.step()
    return params


def best_of(problem: Problem, log_decays: Tensor, seed: int) -> tuple[Params, Tensor]:
    """The network of the lowest dev loss, and its row of penalties."""
    params = train(problem, log_decays, seed)
    with torch.no_grad():
        dev_losses = vmap(loss, in_dims=(0, None))(params, problem.dev)
    best = int(dev_losses.argmin())
    return {name: value[best] for name, value in params.items()}, log_decays[best]


def learned(problem: Problem, seed: int) -> tuple[Params, Tensor]:
    """Learn the penalties in one training, then train anew with them."""
    params: Params = {
        name: nn.Parameter(value[0].detach()) for name, value in initial(1, seed).items()
    }
    log_decay: Params = {name: nn.Parameter(torch.tensor(1e-3).log()) for name in LAYERS}
    optimizer = torch.optim.Adam(params.values(), lr=1e-2)
    outer_optimizer = torch.optim.Adam(log_decay.values(), lr=OUTER_LR)
    # The Hessian is that of `inner`, the penalties included.
    core = reweight.ImplicitHypergradient(reweight.ConjugateGradient(20), damping=1e-3)
    for step in range(STEPS):
        optimizer.zero_grad()
        problem.inner(params, log_decay).backward()
        optimizer.step()
        if step >= 100 and step % OUTER_EVERY == 0:
            grads, _ = core(problem.inner, problem.outer, params, log_decay)
            for name, grad in grads.items():
                log_decay[name].grad = grad
            outer_optimizer.step()
    found = torch.stack([log_decay[name].detach() for name in LAYERS])
    return best_of(problem, found.unsqueeze(0), seed)


def same_for_all(values: Tensor) -> Tensor:
    """One penalty for all layers: [C] as rows [C, layers]."""
    return values.unsqueeze(1).expand(-1, len(LAYERS)).log()


def one_for_each(values: Tensor) -> Tensor:
    """All combinations of penalties, [C ** layers, layers]."""
    return torch.tensor(list(product(values.tolist(), repeat=len(LAYERS)))).log()


METHODS: dict[str, Callable[[Problem, int], tuple[Params, Tensor]]] = {
    "no penalty": lambda problem, seed: best_of(problem, same_for_all(torch.tensor([1e-12])), seed),
    "one penalty, grid of 9": lambda problem, seed: best_of(
        problem, same_for_all(torch.logspace(-5, -1, 9)), seed
    ),
    "one per layer, grid of 125": lambda problem, seed: best_of(
        problem, one_for_each(torch.logspace(-5, -1, 5)), seed
    ),
    "one per layer, learned": learned,
}


def digits(seed: int) -> tuple[Batch, Batch, Batch]:
    """100 train, 200 dev and 1497 test samples, each with 64 pixels and 64 columns of noise."""
    torch.manual_seed(seed)
    data = load_digits()
    order = torch.randperm(len(data.target))
    pixels = torch.tensor(data.data / 16 - 0.5, dtype=torch.float32)[order]
    batch = pixels, torch.randn_like(pixels) / 2, torch.tensor(data.target)[order]
    train, dev, test = (
        tuple(part[rows] for part in batch)
        for rows in (slice(100), slice(100, 300), slice(300, None))
    )
    return train, dev, test  # type: ignore[return-value]


def main(arguments: list[str] | None = None) -> None:
    """Compare the four ways over seeds."""
    parser = argparse.ArgumentParser(description="Weight decay for each layer.")
    parser.add_argument("--seeds", type=int, default=5)
    seeds = parser.parse_args(arguments).seeds
    torch.set_num_threads(1)  # for tensors this small, one thread is faster than several
    print(f"| penalties | test loss | test accuracy | {' | '.join(LAYERS)} |")
    print("| --- |" + " ---: |" * (2 + len(LAYERS)))
    for name, method in METHODS.items():
        losses, accuracies, decays = [], [], []
        for seed in range(seeds):
            train_set, dev, test = digits(seed)
            params, log_decay = method(Problem(train_set, dev), seed)
            with torch.no_grad():
                losses.append(loss(params, test))
                accuracies.append((logits(params, test).argmax(1) == test[2]).float().mean())
            decays.append(log_decay)
        mean = [f"{value:.0e}" for value in torch.stack(decays).mean(0).exp().tolist()]
        print(f"| {name} | {spread(losses)} | {spread(accuracies)} | {' | '.join(mean)} |")


def spread(values: list[Tensor]) -> str:
    """The mean, and its standard error where there are several seeds."""
    stacked = torch.stack(values)
    error = f" ± {stacked.std() / len(values) ** 0.5:.3f}" if len(values) > 1 else ""
    return f"{stacked.mean():.3f}{error}"


if __name__ == "__main__":
    main()
