"""MiNet: interests of three kinds, weighted by attention (Ouyang et al., CIKM 2020)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cdr.common import at_least, widths
from cdr.data import CrossDomainData, History, PairBatch, Windows
from cdr.models.base import (
    CrossDomainModel,
    ItemEmbedding,
    ModelOptions,
    masked_softmax,
    present,
)


@dataclass(frozen=True)
class MiNetOptions(ModelOptions):
    """MiNet."""

    target_window: int = 10
    """Most recent target positives it attends to."""
    source_window: int = 20
    """Most recent source positives it attends to."""
    attention: int = 32
    """Hidden width of the attention over items and of the gates over interests (the original:
    64)."""
    rank: int = 10
    """Rank of the map that carries a source item to the target's space."""
    hidden: tuple[int, ...] = (64, 32)
    """Hidden widths of the two prediction networks (the original: 256, 128)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, "model", self, "target_window", "source_window", "attention", "rank")
        widths("model", self, "hidden")


class MiNet(CrossDomainModel):
    """Long-term interest (the user) and short-term ones (recent positives of both domains).

    Within a history, an item ``h`` counts for the candidate ``c`` of the user ``u`` by
    ``softmax(v' ReLU(V [h ; c ; u ; h * c]))``; a source item enters the product through a map of
    low rank. The interests are scaled by gates ``exp(g' ReLU(W [c ; u ; p_t ; p_s]) + b)``, whose
    biases begin at 1 for the user and 0 for the histories. An item is [id ; category].
    """

    label = "MiNet"
    Options = MiNetOptions
    original = MiNetOptions(attention=64, hidden=(256, 128), init_std=0.01)
    presets = {**CrossDomainModel.presets, "paper": {"perceptron.history": 20}}

    def __init__(
        self, data: CrossDomainData, options: MiNetOptions, single_domain: bool = False
    ) -> None:
        super().__init__(data, options, single_domain)
        dim, item = options.dim, 2 * options.dim
        sources = 0 if single_domain else 1
        self.target_attention = _Attention(item, dim, options.attention)
        if not single_domain:
            self.source_attention = _Attention(item, dim, options.attention, options.rank)
        read = item + dim + item * (1 + sources)  # [candidate ; user ; p_t (; p_s)]
        biases = (1.0, 0.0, 0.0)[: 2 + sources]
        self.gates = nn.ModuleList(_gate(read, options.attention, bias) for bias in biases)
        self.target_network = _network(read, options.hidden)
        if not single_domain:
            self.source_network = _network(item + dim, options.hidden)
        self._add_heads(options.hidden[-1], options.hidden[-1])

    @classmethod
    def windows(cls, options: ModelOptions, single_domain: bool) -> Windows:
        assert isinstance(options, MiNetOptions)
        return Windows(
            target=(0 if single_domain else options.source_window, options.target_window)
        )

    def target_features(self, batch: PairBatch) -> Tensor:
        user, item = self.user(batch.user), self.target_items(batch.target)
        past = present(batch.target_past)
        histories = [(self.target_attention, self.target_items, past.target)]
        if not self.single_domain:
            histories.append((self.source_attention, self.source_items, past.source))
        interests = [user]
        for attention, items, history in histories:
            interests.append(_interest(attention, items, present(history), item, user))
        read = torch.cat([item, *interests], -1)
        gated = [
            gate(read).exp() * interest
            for gate, interest in zip(self.gates, interests, strict=True)
        ]
        features: Tensor = self.target_network(torch.cat([item, *gated], -1))
        return features

    def source_features(self, batch: PairBatch) -> Tensor:
        read = torch.cat([self.source_items(batch.source), self.user(batch.source_user)], -1)
        features: Tensor = self.source_network(read)
        return features


class _Attention(nn.Module):
    """Importance of each item of a history for the candidate, before the softmax."""

    def __init__(self, item: int, user: int, hidden: int, rank: int | None = None) -> None:
        super().__init__()
        # V of the four parts apart: candidate and user need not be repeated for each item.
        self.of_history = nn.Linear(item, hidden, bias=False)
        self.of_rest = nn.Linear(item + user, hidden, bias=False)
        self.of_product = nn.Linear(item, hidden, bias=False)
        self.score = nn.Linear(hidden, 1, bias=False)
        self.transfer: nn.Module = nn.Identity()
        if rank is not None:
            self.transfer = nn.Sequential(
                nn.Linear(item, rank, bias=False), nn.Linear(rank, item, bias=False)
            )

    def forward(self, history: Tensor, item: Tensor, user: Tensor) -> Tensor:
        product = self.transfer(history) * item.unsqueeze(1)
        rest = self.of_rest(torch.cat([item, user], -1)).unsqueeze(1)
        hidden = (self.of_history(history) + self.of_product(product) + rest).relu()
        scores: Tensor = self.score(hidden).squeeze(-1)
        return scores


def _interest(
    attention: _Attention, items: ItemEmbedding, history: History, item: Tensor, user: Tensor
) -> Tensor:
    """The items of a history averaged by their importance, [B, D]; zero for an empty one."""
    embedded = items(history.items)
    weight = masked_softmax(attention(embedded, item, user), history.mask)
    interest: Tensor = (weight.unsqueeze(1) @ embedded).squeeze(1)
    return interest


def _gate(width: int, hidden: int, bias: float) -> nn.Sequential:
    """The logarithm of a gate, with the initial bias of its last layer."""
    first, last = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, 1)
    nn.init.constant_(last.bias, bias)
    return nn.Sequential(first, nn.ReLU(), last)


def _network(width: int, hidden: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in zip((width, *hidden), hidden, strict=False):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers)
