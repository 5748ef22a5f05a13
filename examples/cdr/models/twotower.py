"""Two towers over a shared user: the smallest model that transfers anything."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cdr.data import CrossDomainData, PairBatch
from cdr.models.base import CrossDomainModel, ModelOptions


class TwoTower(CrossDomainModel):
    """The user's embedding times a map of the item's, entry by entry; a head adds them up.

    Nothing but the user's table is common to the domains.
    """

    label = "TwoTower"

    def __init__(
        self, data: CrossDomainData, options: ModelOptions, single_domain: bool = False
    ) -> None:
        super().__init__(data, options, single_domain)
        self.target_map = nn.Linear(2 * options.dim, options.dim)
        if not single_domain:
            self.source_map = nn.Linear(2 * options.dim, options.dim)
        # The item's own features go beside the products, for what everybody likes.
        self._add_heads(3 * options.dim, 3 * options.dim)

    def target_features(self, batch: PairBatch) -> Tensor:
        item = self.target_items(batch.target)
        return torch.cat([self.user(batch.user) * self.target_map(item), item], -1)

    def source_features(self, batch: PairBatch) -> Tensor:
        item = self.source_items(batch.source)
        return torch.cat([self.user(batch.source_user) * self.source_map(item), item], -1)
