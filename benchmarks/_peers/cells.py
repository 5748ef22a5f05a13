"""The bilevel problems that all contestants solve."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

import reweight
from benchmarks._peers.layers import TransformerLayer
from cdr.data import Candidates, History, PairBatch
from cdr.models.conet import CoNet, CoNetOptions
from reweight import Losses

BATCH, HISTORY, DIM = 64, 50, 10
NUM_FEATURES, NUM_CLASSES = 64, 10
NUM_USERS, NUM_TARGET_ITEMS, NUM_CATEGORIES = 7_576, 11_567, 20  # of the example's first data set
IMAGE = (3, 16, 16)
TOKENS, VOCABULARY = 16, 100

CPU = torch.device("cpu")
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Case:
    """A bilevel problem on one pair of batches."""

    model: nn.Module
    weighter: reweight.SampleWeighter
    losses: Callable[[Any, Any], Losses]
    outer_loss: Callable[[Any, Any], Tensor]
    batch: Any
    dev_batch: Any
    # A classifier has more than its losses: its outputs, and the losses as a function of them.
    outputs: Callable[[nn.Module, Any], Tensor] | None = None
    of_outputs: Callable[[Tensor, Any], Tensor] | None = None
    # For conjugate gradients. The Hessian of an untrained network is indefinite; with this damping
    # it is positive definite, and so well conditioned that ten steps converge. The variants of the
    # method, which differ before that, then have one result.
    damping: float = 10.0

    @property
    def params(self) -> list[Tensor]:
        return list(self.model.parameters())

    @property
    def hparams(self) -> list[Tensor]:
        return list(self.weighter.parameters())

    def inner(self) -> Tensor:
        """The weighted loss of the train batch, with the weighter in the graph."""
        losses = self.losses(self.model, self.batch)
        weights = self.weighter(losses.weighted.detach(), losses.inputs)
        return (weights * losses.weighted).mean() + losses.fixed

    def outer(self) -> Tensor:
        return self.outer_loss(self.model, self.dev_batch)

    def forward_backward(self) -> None:
        """A training step without weights and without the optimizer: the unit of cost."""
        losses = self.losses(self.model, self.batch)
        torch.autograd.grad(losses.weighted.mean() + losses.fixed, self.params)

    def small_in_float64(self, num_samples: int = 16) -> Case:
        """The same classifier on the first samples of its batches, in float64."""

        def first(batch: Pair) -> Pair:
            x, y = (part[:num_samples] for part in batch)
            return x.double() if x.is_floating_point() else x, y

        model, weighter = copy.deepcopy((self.model, self.weighter))
        return Case(
            model.double(),
            weighter.double(),
            self.losses,
            self.outer_loss,
            first(self.batch),
            first(self.dev_batch),
            self.outputs,
            self.of_outputs,
            self.damping,
        )


# -- classifiers, weighted by the losses of the samples -------------------------------------------


def dense(num_parameters: int, device: torch.device = CPU, num_outputs: int = NUM_CLASSES) -> Case:
    """A network of three layers; with one output, it tells two classes apart."""
    torch.manual_seed(0)
    # width² + (features + outputs + 2)·width + outputs = num_parameters
    linear = NUM_FEATURES + num_outputs + 2
    width = round((-linear + math.sqrt(linear**2 + 4 * (num_parameters - num_outputs))) / 2)
    model = nn.Sequential(
        nn.Linear(NUM_FEATURES, width),
        nn.Tanh(),
        nn.Linear(width, width),
        nn.Tanh(),
        nn.Linear(width, num_outputs),
    )
    return _classifier(
        model, lambda: torch.randn(BATCH, NUM_FEATURES), device, num_outputs=num_outputs
    )


def convolutional(device: torch.device = CPU) -> Case:
    """A small network of convolutions with group normalization."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(IMAGE[0], 32, 3, padding=1),
        nn.GroupNorm(4, 32),
        nn.GELU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.GroupNorm(4, 64),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(64 * 4 * 4, NUM_CLASSES),
    )
    # Curvatures from -10 to 33 were met.
    return _classifier(model, lambda: torch.randn(BATCH, *IMAGE), device, damping=100.0)


class _Transformer(nn.Module):
    """Two layers over a sequence of tokens, averaged."""

    def __init__(self, width: int = 64, num_heads: int = 4) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.places = nn.Parameter(torch.randn(TOKENS, width))
        self.layers = nn.Sequential(*(TransformerLayer(width, num_heads) for _ in range(2)))
        self.out = nn.Linear(width, NUM_CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.out(self.layers(self.tokens(ids) + self.places).mean(1))
        return out


def transformer(device: torch.device = CPU) -> Case:
    torch.manual_seed(0)
    return _classifier(_Transformer(), lambda: torch.randint(VOCABULARY, (BATCH, TOKENS)), device)


def _classifier(
    model: nn.Module,
    x: Callable[[], Tensor],
    device: torch.device,
    damping: float = 10.0,
    num_outputs: int = NUM_CLASSES,
) -> Case:
    def outputs(model: nn.Module, batch: Pair) -> Tensor:
        out: Tensor = model(batch[0])
        return out

    def of_outputs(outputs: Tensor, batch: Pair) -> Tensor:
        y = batch[1]
        if num_outputs == 1:
            each = binary_cross_entropy_with_logits
            return each(outputs.squeeze(-1), y.to(outputs.dtype), reduction="none")
        return cross_entropy(outputs, y, reduction="none")

    def losses(model: nn.Module, batch: Pair) -> Losses:
        return Losses(of_outputs(outputs(model, batch), batch))

    def batch() -> Pair:
        return x().to(device), torch.randint(max(2, num_outputs), (BATCH,)).to(device)

    return Case(
        model.to(device),
        awake(reweight.LossWeighter(16)).to(device),
        losses,
        lambda model, batch: losses(model, batch).weighted.mean(),
        batch(),
        batch(),
        outputs,
        of_outputs,
        damping,
    )


# -- a recommendation model, weighted by the histories of its users -------------------------------


def tables(num_rows: int, device: torch.device = CPU) -> Case:
    """CoNet with a source table of ``num_rows`` rows, and the behavioral perceptron."""
    torch.manual_seed(0)
    sizes = SimpleNamespace(
        num_users=NUM_USERS,
        source_items=SimpleNamespace(num=num_rows, num_categories=NUM_CATEGORIES),
        target_items=SimpleNamespace(num=NUM_TARGET_ITEMS, num_categories=NUM_CATEGORIES),
    )
    model = CoNet(sizes, CoNetOptions(dim=DIM)).to(device)

    def candidates(num: int, *shape: int) -> Candidates:
        return Candidates(
            torch.randint(num, shape, device=device),
            torch.randint(NUM_CATEGORIES, shape, device=device),
        )

    def history(num: int) -> History:
        length = torch.randint(1, HISTORY + 1, (BATCH, 1), device=device)
        mask = torch.arange(HISTORY, device=device) < length
        return History(candidates(num, BATCH, HISTORY), mask)

    def batch() -> PairBatch:
        user = torch.randint(NUM_USERS, (BATCH,), device=device)
        return PairBatch(
            user=user,
            target=candidates(NUM_TARGET_ITEMS, BATCH),
            source=candidates(num_rows, BATCH),
            target_label=torch.randint(2, (BATCH,), device=device).float(),
            source_label=torch.randint(2, (BATCH,), device=device).float(),
            source_user=user,
            source_row=torch.zeros_like(user),  # not used
            has_source=torch.ones(BATCH, dtype=torch.bool, device=device),
            source_history=history(num_rows),
            target_history=history(NUM_TARGET_ITEMS),
        )

    return Case(
        model,
        awake(reweight.BehavioralPerceptron(2 * DIM)).to(device),
        lambda model, batch: model.losses(batch),
        lambda model, batch: model.outer_loss(batch),
        batch(),
        batch(),
    )


def awake(weighter: reweight.SampleWeighter) -> reweight.SampleWeighter:
    """Move it away from its start, where a last layer of zeros passes no gradient on."""
    with torch.no_grad():
        for parameter in weighter.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return weighter


CLASSIFIERS: dict[str, Callable[[], Case]] = {
    "MLP 10 k": lambda: dense(10_000),
    "MLP 1 M": lambda: dense(1_000_000),
    "MLP 5 M": lambda: dense(5_000_000),
    "CNN": convolutional,
    "transformer": transformer,
}
# A solve in sample space has a matrix of the size of all outputs of a batch.
ONE_OUTPUT: dict[str, Callable[[], Case]] = {
    "one output, 1 M": lambda: dense(1_000_000, num_outputs=1)
}
TABLES: dict[str, Callable[[], Case]] = {
    "table, 10 k rows": lambda: tables(10_000),
    "table, 1 M rows": lambda: tables(1_000_000),
}
