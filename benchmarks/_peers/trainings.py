"""A training with learned weights beside the same training without: the shape of GPT-2, two layers.

The weights are random. A weight is learned for each of eight groups of sequences.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import reweight
from benchmarks._measure import interleaved
from benchmarks._peers.cells import CPU
from benchmarks._peers.layers import LowRank, TransformerLayer
from reweight import Identity, ImplicitHypergradient, Losses

INTERVAL = 10  # training steps between two outer steps
GROUPS = 8
BASE, DEFAULT, IDENTITY = "without weights", "default", "Identity"
ALL, LORA = "all parameters", "LoRA"


@dataclass(frozen=True)
class Shape:
    """The sizes of a language model and of its batches."""

    width: int = 768
    num_heads: int = 12
    num_layers: int = 2
    vocabulary: int = 8_192  # GPT-2's has 50,257, whose product would hide the layers
    length: int = 32
    batch: int = 8


SMALL = Shape(width=32, num_heads=4, vocabulary=64, length=8)


class LanguageModel(nn.Module):
    """GPT-2, its output layer tied to the table of tokens."""

    def __init__(self, shape: Shape, lora: bool) -> None:
        super().__init__()
        self.tokens = nn.Embedding(shape.vocabulary, shape.width)
        self.places = nn.Embedding(shape.length, shape.width)
        self.layers = nn.Sequential()
        for _ in range(shape.num_layers):
            layer = TransformerLayer(shape.width, shape.num_heads, causal=True)
            if lora:
                layer.queries_keys_values = LowRank(layer.queries_keys_values)
                layer.together = LowRank(layer.together)
            self.layers.append(layer)
        self.last = nn.LayerNorm(shape.width)
        for table in (self.tokens, self.places):
            nn.init.normal_(table.weight, std=0.02)
        if lora:
            for name, parameter in self.named_parameters():
                parameter.requires_grad_(".down." in name or ".up." in name)

    def forward(self, ids: Tensor) -> Tensor:
        places = self.places.weight[: ids.shape[1]]
        hidden = self.last(self.layers(self.tokens(ids) + places))
        return hidden @ self.tokens.weight.T


Batch = tuple[Tensor, Tensor]


def losses(model: nn.Module, batch: Batch) -> Losses:
    """The mean loss of each sequence's next tokens."""
    ids, groups = batch
    each = cross_entropy(model(ids)[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    return Losses(each.mean(1), inputs=groups)


def outer_loss(model: nn.Module, batch: Batch) -> Tensor:
    return losses(model, batch).weighted.mean()


def training(
    shape: Shape, lora: bool, strategy: ImplicitHypergradient | None
) -> Callable[[], None]:
    """A call: ``INTERVAL`` training steps, and an outer step where there is a strategy."""
    torch.manual_seed(0)
    model = LanguageModel(shape, lora)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)

    def batch() -> Batch:
        ids = torch.randint(shape.vocabulary, (shape.batch, shape.length))
        return ids, torch.randint(GROUPS, (shape.batch,))

    batches = [batch() for _ in range(INTERVAL)]
    rw: Any = None
    if strategy is not None:
        weighter = reweight.GroupWeighter(GROUPS)
        rw = reweight.wrap(model, weighter, losses, outer_loss, optimizer, strategy)
        outer_optimizer = torch.optim.Adam(weighter.parameters(), lr=1e-2)

    def turn() -> None:
        for each in batches:
            optimizer.zero_grad()
            (outer_loss(model, each) if rw is None else rw.loss(each)).backward()
            optimizer.step()
        if rw is not None:
            rw.outer_backward(batches[0], batches[1])
            outer_optimizer.step()
            outer_optimizer.zero_grad()

    return turn


def measured(shape: Shape, seconds: float, rounds: int) -> dict[str, dict[str, float]]:
    """The processor time of a turn of each training, for all parameters and for LoRA's."""
    found = {}
    for what in (ALL, LORA):
        strategies = {
            BASE: None,
            DEFAULT: ImplicitHypergradient(),
            IDENTITY: ImplicitHypergradient(Identity()),
        }
        turns = {
            name: training(shape, what == LORA, strategy) for name, strategy in strategies.items()
        }
        for turn in turns.values():
            turn()  # the first outer step also compares derivatives
        times = interleaved(turns, CPU, seconds, rounds, clock=time.process_time)
        found[what] = {name: statistics.median(times[name]) for name in turns}
    return found
