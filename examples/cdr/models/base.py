"""The base class of the recommendation models of two domains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, pad

from cdr.common import at_least, positive
from cdr.data import Candidates, CrossDomainData, FlatHistories, History, PairBatch, Past, Windows
from reweight import BehaviorInputs, HistorySlices, Losses


@dataclass(frozen=True)
class ModelOptions:
    """The options of every model; a model adds its own."""

    dim: int = 10
    """Width of each embedding (user, item, category)."""
    init_std: float = 0.3
    """Standard deviation of the initial embeddings."""
    dev_head: bool = False
    """An extra target head for the outer loss, trained apart before each outer step."""

    def __post_init__(self) -> None:
        at_least(1, "model", self, "dim")
        positive("model", self, "init_std")


class CrossDomainModel(nn.Module, ABC):
    """Tables of users and items, and a linear head on the features of each domain.

    A model defines its features; losses, scores and the inputs of the behavioral perceptron come
    from here. A further model is one file with a subclass (:mod:`cdr.models`).

    Args:
        data: Only its sizes are used.
        options: An instance of :attr:`Options`.
        single_domain: Leave out the source branch and all that depends on it (the variant ``-S``).

    Attributes:
        label: The name in tables.
        Options: Its options; the defaults are those that train well here in little time.
        original: The options of the model's own paper, as far as it states them.
        presets: By preset, the options that this model sets otherwise than the preset does, by
            dotted name ("inner.lr"). Those of the base class suit models with attention.
        pairs_users: Whether the source behaviour beside a target row has to be of the same user.
        mixes_candidates: Whether the source behaviour beside a target row changes its score.
    """

    label: ClassVar[str]
    Options: ClassVar[type[ModelOptions]] = ModelOptions
    original: ClassVar[ModelOptions] = ModelOptions()
    # Attention trains well only at a learning rate at which training is over in a few epochs, so
    # that the perceptron has to move faster too.
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {
            "inner.lr": 1e-2,
            "inner.batch_size": 256,
            "inner.patience": 2,
            "outer.lr": 1e-2,
            "search.lr": 3e-3,
            "search.inner_lr": 1e-2,
        }
    }
    pairs_users: ClassVar[bool] = False
    mixes_candidates: ClassVar[bool] = False

    def __init__(
        self, data: CrossDomainData, options: ModelOptions, single_domain: bool = False
    ) -> None:
        super().__init__()
        self.options = options
        self.single_domain = single_domain
        self.user = nn.Embedding(data.num_users, options.dim)
        items = data.target_items
        self.target_items = ItemEmbedding(items.num, items.num_categories, options.dim)
        if not single_domain:
            # One more item and category: the pad of users without source behaviours.
            items = data.source_items
            self.source_items = ItemEmbedding(items.num + 1, items.num_categories + 1, options.dim)

    @classmethod
    def windows(cls, options: ModelOptions, single_domain: bool) -> Windows:
        """How many of a user's earlier positives the model reads beside its candidates."""
        return Windows()

    @abstractmethod
    def target_features(self, batch: PairBatch) -> Tensor:
        """The input of the target head, [B, width]."""

    @abstractmethod
    def source_features(self, batch: PairBatch) -> Tensor:
        """The input of the source head, [B, width]."""

    def features(self, batch: PairBatch) -> tuple[Tensor, Tensor | None]:
        """Both, for a model whose domains share work; None where there is a single domain."""
        target = self.target_features(batch)
        return target, None if self.single_domain else self.source_features(batch)

    def penalty(self, batch: PairBatch) -> Tensor | float:
        """A term that is added to the target loss."""
        return 0.0

    def forward(self, batch: PairBatch) -> tuple[Tensor, Tensor | None]:
        """Logits of the target and of the source behaviours, [B] each."""
        target, source = self.features(batch)
        logits = self.target_head(target).squeeze(-1)
        return logits, None if source is None else self.source_head(source).squeeze(-1)

    def target_logits(self, batch: PairBatch) -> Tensor:
        """Logits of the target behaviours alone, [B]."""
        logits: Tensor = self.target_head(self.target_features(batch)).squeeze(-1)
        return logits

    def losses(self, batch: PairBatch) -> Losses:
        """Target loss (fixed) and one loss per source behaviour (weighted; 0 for a pad)."""
        target_logits, source_logits = self(batch)
        fixed = binary_cross_entropy_with_logits(target_logits, batch.target_label)
        fixed = fixed + self.penalty(batch)
        if source_logits is None:
            return Losses(fixed.new_zeros(len(batch)), fixed)
        weighted = binary_cross_entropy_with_logits(
            source_logits, batch.source_label, reduction="none"
        )
        return Losses(weighted * batch.has_source, fixed, self.behavior_inputs(batch))

    def target_loss(self, batch: PairBatch) -> Tensor:
        """The loss on target behaviours alone: what the model is trained for."""
        return binary_cross_entropy_with_logits(self.target_logits(batch), batch.target_label)

    def outer_loss(self, batch: PairBatch) -> Tensor:
        """The same, through the extra head if there is one."""
        if not self.options.dev_head:
            return self.target_loss(batch)
        logits = self.dev_head(self.target_features(batch)).squeeze(-1)
        return binary_cross_entropy_with_logits(logits, batch.target_label)

    def behavior_inputs(self, batch: PairBatch) -> BehaviorInputs | None:
        """The inputs of the behavioral perceptron; None where the batch has no histories.

        What the batch tells of the behaviour beside its item stands behind the item's embedding;
        the behaviours of the histories have zeros there.
        """
        if batch.source_history is None or batch.target_history is None:
            return None
        with torch.no_grad():  # the wrapper detaches it anyway
            source, source_mask = _embedded(self.source_items, batch.source_history)
            target, target_mask = _embedded(self.target_items, batch.target_history)
            item, facts = self.source_items(batch.source), batch.source_facts
            if facts is not None:
                item = torch.cat([item, facts.to(item.dtype)], -1)
                source, target = (_widened(x, facts.shape[-1]) for x in (source, target))
            return BehaviorInputs(item, source, target, source_mask, target_mask)

    def _add_heads(self, target_width: int, source_width: int, bias: bool = True) -> None:
        """Add the heads and draw the embeddings: the last step of a subclass's ``__init__``."""
        self.target_head = nn.Linear(target_width, 1, bias=bias)
        if not self.single_domain:
            self.source_head = nn.Linear(source_width, 1, bias=bias)
        if self.options.dev_head:
            self.dev_head = nn.Linear(target_width, 1, bias=bias)
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=self.options.init_std)


class ItemEmbedding(nn.Module):
    """[item ; category], 2·dim wide."""

    def __init__(self, num_items: int, num_categories: int, dim: int) -> None:
        super().__init__()
        self.item = nn.Embedding(num_items, dim)
        self.category = nn.Embedding(num_categories, dim)

    def forward(self, candidates: Candidates) -> Tensor:
        return torch.cat([self.item(candidates.item), self.category(candidates.category)], -1)


def _embedded(
    items: ItemEmbedding, history: History | FlatHistories
) -> tuple[Tensor | HistorySlices, Tensor | None]:
    """The embeddings of histories, and their mask if they are padded."""
    embeddings = items(history.items)
    if isinstance(history, FlatHistories):
        return HistorySlices(embeddings, history.start, history.length), None
    return embeddings, history.mask


def _widened(history: Tensor | HistorySlices, columns: int) -> Tensor | HistorySlices:
    """Embeddings with columns of zeros behind them."""
    if isinstance(history, HistorySlices):
        return history._replace(behaviors=pad(history.behaviors, (0, columns)))
    return pad(history, (0, columns))


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last dimension of scores [..., N]; zeros where the mask is all False."""
    # Not -inf: a row whose mask is all False would become NaN, and so would its gradient.
    return scores.masked_fill(~mask, -1e9).softmax(-1) * mask


_Read = TypeVar("_Read", History, Past)


def present(read: _Read | None) -> _Read:
    """A history of the batch that the model needs.

    Raises:
        ValueError: The batch was made without it.
    """
    if read is None:
        raise ValueError(
            "the batch lacks a history that the model reads; make it by "
            "Batches(..., windows=model.windows(options, single_domain))"
        )
    return read
