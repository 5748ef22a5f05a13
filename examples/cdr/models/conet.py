"""CoNet: two towers that exchange their activations (Hu et al., CIKM 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from cdr.batches import Candidates, PairBatch
from cdr.data.schema import CrossDomainData
from cdr.models.options import ModelOptions
from reweight import BehaviorInputs, Losses


class CoNet(nn.Module):
    """Cross-stitch towers of the two domains over a shared user embedding.

    ``a_t' = ReLU(W_t a_t + b_t + H a_s)`` and ``a_s' = ReLU(W_s a_s + b_s + H a_t)`` with the same
    ``H`` both ways; the input of a tower is [user ; item ; category].

    Args:
        data: Only its sizes are used.
        options: Widths and initialisation.
        single_domain: Leave out the source tower and all that comes from it (the variant ``-S``).
    """

    label = "CoNet"

    def __init__(
        self, data: CrossDomainData, options: ModelOptions, single_domain: bool = False
    ) -> None:
        super().__init__()
        dim, widths = options.dim, (3 * options.dim, *options.hidden)
        self.dim = dim
        self.single_domain = single_domain
        self.user = nn.Embedding(data.num_users, dim)
        self.target_items = _ItemEmbedding(
            data.target_items.num, data.target_items.num_categories, dim
        )
        self.target_tower = _tower(widths, options.bias)
        self.target_head = nn.Linear(widths[-1], 1, bias=options.bias)
        if not single_domain:
            # One more item and category: the pad of users without source behaviours.
            self.source_items = _ItemEmbedding(
                data.source_items.num + 1, data.source_items.num_categories + 1, dim
            )
            self.source_tower = _tower(widths, options.bias)
            self.source_head = nn.Linear(widths[-1], 1, bias=options.bias)
            self.cross = nn.ModuleList(
                nn.Linear(a, b, bias=False)
                for a, b in list(zip(widths, widths[1:], strict=False))[: options.cross_layers]
            )
        if options.dev_head:
            self.dev_head = nn.Linear(widths[-1], 1, bias=options.bias)
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=options.init_std)

    def forward(self, batch: PairBatch) -> tuple[Tensor, Tensor | None]:
        """Logits of the target and of the source behaviours, [B] each."""
        target, source = self._towers(batch)
        logits = self.target_head(target).squeeze(-1)
        return logits, None if source is None else self.source_head(source).squeeze(-1)

    def losses(self, batch: PairBatch) -> Losses:
        """Target loss (fixed) and one loss per source behaviour (weighted; 0 for a pad)."""
        target_logits, source_logits = self(batch)
        fixed = binary_cross_entropy_with_logits(target_logits, batch.target_label)
        if source_logits is None:
            return Losses(fixed.new_zeros(len(batch)), fixed)
        weighted = binary_cross_entropy_with_logits(
            source_logits, batch.source_label, reduction="none"
        )
        return Losses(weighted * batch.has_source, fixed, self.behavior_inputs(batch))

    def outer_loss(self, batch: PairBatch) -> Tensor:
        """The loss on target behaviours alone, through the extra head if there is one."""
        if not hasattr(self, "dev_head"):
            return binary_cross_entropy_with_logits(self(batch)[0], batch.target_label)
        logits = self.dev_head(self._towers(batch)[0]).squeeze(-1)
        return binary_cross_entropy_with_logits(logits, batch.target_label)

    def behavior_inputs(self, batch: PairBatch) -> BehaviorInputs | None:
        """What the behavioral perceptron looks at; None where the batch has no histories."""
        if batch.source_history is None or batch.target_history is None:
            return None
        with torch.no_grad():  # the wrapper detaches it anyway: no graph need be built
            return BehaviorInputs(
                self.source_items(batch.source),
                self.source_items(batch.source_history.items),
                self.target_items(batch.target_history.items),
                batch.source_history.mask,
                batch.target_history.mask,
            )

    def _towers(self, batch: PairBatch) -> tuple[Tensor, Tensor | None]:
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


class _ItemEmbedding(nn.Module):
    """[item ; category], 2·dim wide."""

    def __init__(self, num_items: int, num_categories: int, dim: int) -> None:
        super().__init__()
        self.item = nn.Embedding(num_items, dim)
        self.category = nn.Embedding(num_categories, dim)

    def forward(self, candidates: Candidates) -> Tensor:
        return torch.cat([self.item(candidates.item), self.category(candidates.category)], -1)


def _tower(widths: tuple[int, ...], bias: bool) -> nn.ModuleList:
    return nn.ModuleList(
        nn.Linear(a, b, bias=bias) for a, b in zip(widths, widths[1:], strict=False)
    )
