"""CoNet: two towers that exchange their activations (Hu et al., CIKM 2018)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cdr.common import refuse, widths
from cdr.data import CrossDomainData, PairBatch
from cdr.models.base import CrossDomainModel, ModelOptions


@dataclass(frozen=True)
class CoNetOptions(ModelOptions):
    """CoNet."""

    hidden: tuple[int, ...] = (64, 32, 16, 8)
    """Widths of the tower's layers."""
    cross_layers: int = 2
    """How many of them, from below, exchange activations with the other domain."""
    bias: bool = True
    """Whether layers have biases."""

    def __post_init__(self) -> None:
        super().__post_init__()
        widths("model", self, "hidden")
        if not 0 <= self.cross_layers <= len(self.hidden):
            refuse(
                "model",
                "cross_layers",
                self.cross_layers,
                f"the tower has {len(self.hidden)} layers (--model.hidden)",
            )


class CoNet(CrossDomainModel):
    """Cross-stitch towers of the two domains over a shared user embedding.

    ``a_t' = ReLU(W_t a_t + b_t + H a_s)`` and ``a_s' = ReLU(W_s a_s + b_s + H a_t)`` with the same
    ``H`` both ways; the input of a tower is [user ; item ; category].
    """

    label = "CoNet"
    Options = CoNetOptions
    original = CoNetOptions(dim=32, init_std=0.01)
    presets = {
        "authors": {
            "model.dim": 10,
            "model.cross_layers": 4,
            "model.bias": False,
            "model.init_std": 1.0,
        }
    }
    pairs_users = True
    mixes_candidates = True

    def __init__(
        self, data: CrossDomainData, options: CoNetOptions, single_domain: bool = False
    ) -> None:
        super().__init__(data, options, single_domain)
        sizes = (3 * options.dim, *options.hidden)
        self.target_tower = _tower(sizes, options.bias)
        if not single_domain:
            self.source_tower = _tower(sizes, options.bias)
            self.cross = nn.ModuleList(
                nn.Linear(a, b, bias=False)
                for a, b in list(zip(sizes, sizes[1:], strict=False))[: options.cross_layers]
            )
        self._add_heads(sizes[-1], sizes[-1], options.bias)

    def target_features(self, batch: PairBatch) -> Tensor:
        return self.features(batch)[0]

    def source_features(self, batch: PairBatch) -> Tensor:
        source = self.features(batch)[1]
        assert source is not None
        return source

    def features(self, batch: PairBatch) -> tuple[Tensor, Tensor | None]:
        user = self.user(batch.user)
        target = torch.cat([user, self.target_items(batch.target)], -1)
        if self.single_domain:
            for layer in self.target_tower:
                target = layer(target).relu()
            return target, None
        source = torch.cat([user, self.source_items(batch.source)], -1)
        for depth, (layer_t, layer_s) in enumerate(
            zip(self.target_tower, self.source_tower, strict=True)
        ):
            next_t, next_s = layer_t(target), layer_s(source)
            if depth < len(self.cross):
                stitch = self.cross[depth]
                next_t, next_s = next_t + stitch(source), next_s + stitch(target)
            target, source = next_t.relu(), next_s.relu()
        return target, source


def _tower(sizes: tuple[int, ...], bias: bool) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(a, b, bias=bias) for a, b in zip(sizes, sizes[1:], strict=False))
