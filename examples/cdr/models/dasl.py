"""DASL: two recurrent readers with dual embeddings and dual attention (Li et al., KDD 2021)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from cdr.batches import PairBatch, Past, Windows
from cdr.checking import at_least, refuse, widths
from cdr.data.schema import CrossDomainData
from cdr.models.base import CrossDomainModel, ModelOptions, masked_softmax, present


@dataclass(frozen=True)
class DASLOptions(ModelOptions):
    """DASL."""

    window: int = 10
    """Most recent positives of each domain that it reads."""
    state: int = 32
    """Width of the recurrent states (the original: 128)."""
    hidden: tuple[int, ...] = (80, 40)
    """Hidden widths of the prediction networks."""
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
    original = DASLOptions(dim=64, state=128, dropout=0.1)

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

    def _target_history(self, past: Past, user: Tensor) -> tuple[Tensor, Tensor]:
        history = present(past.target)
        return _with_user(self.target_items(history.items), user), history.mask

    def _source_history(self, past: Past, user: Tensor) -> tuple[Tensor, Tensor]:
        history = present(past.source)
        return _with_user(self.source_items(history.items), user), history.mask


def _with_user(items: Tensor, user: Tensor) -> Tensor:
    """[item ; user] at every place of a history."""
    return torch.cat([items, user.unsqueeze(1).expand(-1, items.shape[1], -1)], -1)


class _Reader(nn.Module):
    """A GRU over each history, and attention over the states of all of them together."""

    def __init__(self, options: DASLOptions) -> None:
        super().__init__()
        # Plain operations: cuDNN's recurrence has no second derivatives.
        self.of_input = nn.Linear(3 * options.dim, 3 * options.state)
        self.of_state = nn.Linear(options.state, 3 * options.state)
        self.attention = nn.Linear(options.state, options.state)
        self.score = nn.Linear(options.state, 1, bias=False)
        self.dropout = nn.Dropout(options.dropout)

    def forward(self, histories: list[tuple[Tensor, Tensor]]) -> Tensor:
        """What a user prefers, [B, state], from pairs of entries [B, N, D] and mask [B, N]."""
        all_entries, masks = zip(*histories, strict=True)
        states = self._states(torch.cat(all_entries), torch.cat(masks))
        states, mask = torch.cat(states.chunk(len(histories)), 1), torch.cat(masks, 1)
        scores = self.score(self.attention(states).tanh()).squeeze(-1)
        preference = (masked_softmax(scores, mask).unsqueeze(1) @ states).squeeze(1)
        dropped: Tensor = self.dropout(preference)
        return dropped

    def _states(self, entries: Tensor, mask: Tensor) -> Tensor:
        """The state after each place, [B, N, state]; what is masked is as if it were not there."""
        inputs = self.of_input(entries)
        state = inputs.new_zeros(len(entries), self.of_state.in_features)
        states = []
        for now, real in zip(inputs.unbind(1), mask.unsqueeze(-1).unbind(1), strict=True):
            update, reset, new = now.chunk(3, -1)
            keep, forget, old = self.of_state(state).chunk(3, -1)
            update, reset = (update + keep).sigmoid(), (reset + forget).sigmoid()
            moved = torch.lerp((new + reset * old).tanh(), state, update)
            state = torch.where(real, moved, state)
            states.append(state)
        return torch.stack(states, 1)


class _Network(nn.Module):
    """[preference ; item ; user], normalised, through sigmoid layers."""

    def __init__(self, options: DASLOptions) -> None:
        super().__init__()
        sizes = (options.state + 3 * options.dim, *options.hidden)
        self.norm = nn.BatchNorm1d(sizes[0])
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False))

    def forward(self, preference: Tensor, item: Tensor, user: Tensor) -> Tensor:
        hidden: Tensor = self.norm(torch.cat([preference, item, user], -1))
        for layer in self.layers:
            hidden = layer(hidden).sigmoid()
        return hidden


class _Biases(nn.Module):
    """The sum of a bias of the user and one of the item, [B, 1]."""

    def __init__(self, num_users: int, num_items: int) -> None:
        super().__init__()
        self.user = nn.Embedding(num_users, 1)
        self.item = nn.Embedding(num_items, 1)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        biases: Tensor = self.user(user) + self.item(item)
        return biases
