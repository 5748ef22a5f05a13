"""DASL: two recurrent readers with dual embeddings and dual attention (Li et al., KDD 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, cosine_similarity

from cdr.common import at_least, refuse, widths
from cdr.data import Candidates, CrossDomainData, History, PairBatch, Past, Windows
from cdr.models.base import (
    CrossDomainModel,
    ItemEmbedding,
    ModelOptions,
    masked_softmax,
    present,
)


@dataclass(frozen=True)
class DASLOptions(ModelOptions):
    """DASL."""

    window: int = 10
    """Most recent positives of each domain that it reads."""
    state: int = 16
    """Width of the recurrent states (the original: 128)."""
    hidden: tuple[int, ...] = (40, 20)
    """Hidden widths of the prediction networks (the original: 80, 40)."""
    dropout: float = 0.0
    """Share of a preference's entries left out in training."""
    orthogonality: float = 0.1
    """Weight of the distance between the users' two embeddings, one mapped onto the other."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, "model", self, "window", "state")
        at_least(0, "model", self, "orthogonality")
        widths("model", self, "hidden")
        if not 0 <= self.dropout < 1:
            refuse("model", "dropout", self.dropout, "it must be 0 or more and below 1")


class DASL(CrossDomainModel):
    """Each domain reads both histories by its own GRU and attends to all their states at once.

    The dual embedding: a user has a row in the table of each domain, and an orthogonal map carries
    one to the other. An item is [id ; category]. Unlike in the code released for it, dropout is
    off and batch statistics are fixed when scores are made, the orthogonality is part of the loss,
    and no history holds its candidate.
    """

    label = "DASL"
    Options = DASLOptions
    original = DASLOptions(dim=64, state=128, hidden=(80, 40), dropout=0.1)
    presets = {
        "default": {**CrossDomainModel.presets["default"], "search.inner_lr": 3e-3},
    }

    def __init__(
        self, data: CrossDomainData, options: DASLOptions, single_domain: bool = False
    ) -> None:
        super().__init__(data, options, single_domain)
        self._orthogonality = options.orthogonality
        self.target_reader = _Reader(options)
        self.target_network = _Network(options)
        self.target_bias = _Biases(data.num_users, data.target_items.num)
        if not single_domain:
            self.source_user = nn.Embedding(data.num_users, options.dim)
            self.to_target = nn.Parameter(torch.eye(options.dim))
            self.source_reader = _Reader(options)
            self.source_network = _Network(options)
            self.source_bias = _Biases(data.num_users, data.source_items.num + 1)
        # The biases of user and item are one more feature.
        self._add_heads(options.hidden[-1] + 1, options.hidden[-1] + 1)
        for module in self.modules():
            if isinstance(module, _Biases):
                nn.init.zeros_(module.user.weight)
                nn.init.zeros_(module.item.weight)

    @classmethod
    def windows(cls, options: ModelOptions, single_domain: bool) -> Windows:
        assert isinstance(options, DASLOptions)
        both = (options.window, options.window)
        return Windows((0, options.window)) if single_domain else Windows(both, both)

    def target_features(self, batch: PairBatch) -> Tensor:
        user, past = self.user(batch.user), present(batch.target_past)
        histories = [self._target_history(past, user)]
        if not self.single_domain:
            of_source = self.source_user(batch.user) @ self.to_target
            histories.append(self._source_history(past, of_source))
        item = self.target_items(batch.target)
        features = self.target_network(self.target_reader(histories), item, user)
        return torch.cat([features, self.target_bias(batch.user, batch.target.item)], -1)

    def source_features(self, batch: PairBatch) -> Tensor:
        user, past = self.source_user(batch.source_user), present(batch.source_past)
        of_target = self.user(batch.source_user) @ self.to_target.T
        histories = [self._source_history(past, user), self._target_history(past, of_target)]
        item = self.source_items(batch.source)
        features = self.source_network(self.source_reader(histories), item, user)
        return torch.cat([features, self.source_bias(batch.source_user, batch.source.item)], -1)

    def penalty(self, batch: PairBatch) -> Tensor | float:
        """Mean cosine distance of the batch's users, mapped, and of the map from orthogonal."""
        if self.single_domain or not self._orthogonality:
            return 0.0
        mapped = self.source_user(batch.user) @ self.to_target
        distance = 1.0 - cosine_similarity(mapped, self.user(batch.user), dim=-1).mean()
        identity = torch.eye(len(self.to_target), device=mapped.device)
        skew = (self.to_target.T @ self.to_target - identity).square().sum()
        return self._orthogonality * (distance + skew)

    def _target_history(self, past: Past, user: Tensor) -> _Sequence:
        return _sequence(self.target_items, present(past.target), user)

    def _source_history(self, past: Past, user: Tensor) -> _Sequence:
        return _sequence(self.source_items, present(past.source), user)


class _Sequence(NamedTuple):
    """A history as a reader takes it: items [N, B, D], user [B, dim], mask [N, B]."""

    items: Tensor
    user: Tensor
    mask: Tensor


def _sequence(items: ItemEmbedding, history: History, user: Tensor) -> _Sequence:
    # Steps first, so that what one step reads lies together.
    ids = Candidates(history.items.item.T, history.items.category.T)
    return _Sequence(items(ids), user, history.mask.T)


class _Reader(nn.Module):
    """A GRU over each history, and attention over the states of all of them together."""

    def __init__(self, options: DASLOptions) -> None:
        super().__init__()
        # Plain operations: cuDNN's recurrence has no second derivatives. A step's input is
        # [item ; user], and the user's part is the same at every step.
        self.of_item = nn.Linear(2 * options.dim, 3 * options.state)
        self.of_user = nn.Linear(options.dim, 3 * options.state, bias=False)
        self.of_state = nn.Linear(options.state, 3 * options.state)
        self.attention = nn.Linear(options.state, options.state)
        self.score = nn.Linear(options.state, 1, bias=False)
        self.dropout = nn.Dropout(options.dropout)

    def forward(self, histories: list[_Sequence]) -> Tensor:
        """The users' preferences, from all of their histories, [B, state]."""
        items = torch.cat([history.items for history in histories], 1)
        user = torch.cat([history.user for history in histories])
        mask = torch.cat([history.mask for history in histories], 1)
        states = self._states(self.of_item(items) + self.of_user(user), mask)
        # [N, histories * B] to [histories * N, B]: one softmax over all states of a user.
        states = torch.cat(states.chunk(len(histories), 1))
        mask = torch.cat(mask.chunk(len(histories), 1))
        scores = self.score(self.attention(states).tanh()).squeeze(-1)
        weight = masked_softmax(scores.T, mask.T).T.unsqueeze(-1)
        preference: Tensor = self.dropout((weight * states).sum(0))
        return preference

    def _states(self, inputs: Tensor, mask: Tensor) -> Tensor:
        """The state after each step, [N, B, state]; masked steps leave it unchanged."""
        width = self.of_state.in_features
        state = inputs.new_zeros(inputs.shape[1], width)
        states = []
        for now, real in zip(inputs, mask.unsqueeze(-1), strict=True):
            recurrent = self.of_state(state)
            gates = (now[:, : 2 * width] + recurrent[:, : 2 * width]).sigmoid()
            update, reset = gates.chunk(2, -1)
            new = torch.addcmul(now[:, 2 * width :], reset, recurrent[:, 2 * width :]).tanh()
            state = torch.where(real, torch.lerp(new, state, update), state)
            states.append(state)
        return torch.stack(states)


class _Network(nn.Module):
    """[preference ; item ; user], normalized, through sigmoid layers."""

    def __init__(self, options: DASLOptions) -> None:
        super().__init__()
        sizes = (options.state + 3 * options.dim, *options.hidden)
        self.norm = nn.BatchNorm1d(sizes[0])
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False))

    def forward(self, preference: Tensor, item: Tensor, user: Tensor) -> Tensor:
        read = torch.cat([preference, item, user], -1)
        hidden: Tensor = self.norm(read) if len(read) > 1 else self._norm_of_one(read)
        for layer in self.layers:
            hidden = layer(hidden).sigmoid()
        return hidden

    def _norm_of_one(self, read: Tensor) -> Tensor:
        # What is left over of an epoch may be a single row, which has no variance.
        norm = self.norm
        return batch_norm(read, norm.running_mean, norm.running_var, norm.weight, norm.bias)


class _Biases(nn.Module):
    """The sum of a bias of the user and one of the item, [B, 1]."""

    def __init__(self, num_users: int, num_items: int) -> None:
        super().__init__()
        self.user = nn.Embedding(num_users, 1)
        self.item = nn.Embedding(num_items, 1)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        biases: Tensor = self.user(user) + self.item(item)
        return biases
