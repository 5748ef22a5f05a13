"""BIAO for CoNet as in the paper, in plain PyTorch: the baseline of epoch.py.

Algorithm 1 of Chen et al., "Cross-domain Recommendation with Behavioral Importance Perception",
WWW'23, in one file. All indices are precomputed and in memory. Tables are dense. Attention is
nn.MultiheadAttention over padded histories. The optimizer is torch.optim.Adam with its defaults.
Inner steps record no graph of the weights. The hypergradient is computed by differentiating twice.

The mathematics is that of the example and the library: with equal parameters, which `copy_from`
copies, losses and hypergradients are equal up to rounding. Where the paper leaves a choice open,
this file makes the same one: losses are averaged over the batch, σ is 2·sigmoid, γ = log2(1 +
e^raw), the Neumann series has a step size, and Adam's weight decay belongs to the inner problem.
Nothing is checked here.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdr.data import CrossDomainData
from cdr.models.conet import CoNetOptions
from cdr.training import Options


class Batch(NamedTuple):
    """Target rows, each with a source row of the same user: [B], histories [B, N]."""

    user: Tensor
    target_item: Tensor
    target_category: Tensor
    target_label: Tensor
    source_item: Tensor
    source_category: Tensor
    source_label: Tensor
    has_source: Tensor
    source_history: Tensor
    source_history_category: Tensor
    source_mask: Tensor
    target_history: Tensor
    target_history_category: Tensor
    target_mask: Tensor


class Rows:
    """All training rows as tensors; batches are gathered from them."""

    def __init__(self, data: CrossDomainData, history: int, seed: int) -> None:
        num_source, device = len(data.source), data.source_offsets.device
        self.user, self.target_item = data.train.user, data.train.item
        self.target_label = data.train.label
        self.target_category = data.target_items.category
        self.first, self.count = data.source_offsets[:-1], data.source_offsets.diff()
        self.generator = torch.Generator(device).manual_seed(seed)

        # One additional source row, item and category: padding for users without source behaviours.
        def padded(values: Tensor, pad: float) -> Tensor:
            return torch.cat([values, values.new_full((1, *values.shape[1:]), pad)])

        self.pad = torch.tensor(num_source, device=device)
        self.source_item = padded(data.source.item, data.source_items.num)
        self.source_label = padded(data.source.label, 0)
        self.source_category = padded(data.source_items.category, data.source_items.num_categories)
        rows = torch.arange(num_source, device=device)
        self.source_history, self.source_mask = (
            padded(values, 0)
            for values in data.source_history.gather(rows, history, exclude=data.source.item)
        )
        self.target_history, self.target_mask = (
            padded(values, 0) for values in data.target_history.gather(rows, history)
        )

    def batch(self, rows: Tensor) -> Batch:
        """These training rows, each with a random source row of its user."""
        rows = rows.to(self.user.device)
        user, target_item = self.user[rows], self.target_item[rows]
        count = self.count[user]
        share = torch.rand(len(rows), generator=self.generator, device=rows.device)
        # float32 can round share·count up to count.
        source = self.first[user] + torch.minimum((share * count).long(), count - 1)
        source = torch.where(count > 0, source, self.pad)
        source_item, source_history = self.source_item[source], self.source_history[source]
        target_history = self.target_history[source]
        return Batch(
            user=user,
            target_item=target_item,
            target_category=self.target_category[target_item],
            target_label=self.target_label[rows],
            source_item=source_item,
            source_category=self.source_category[source_item],
            source_label=self.source_label[source],
            has_source=count > 0,
            source_history=source_history,
            source_history_category=self.source_category[source_history],
            source_mask=self.source_mask[source],
            target_history=target_history,
            target_history_category=self.target_category[target_history],
            target_mask=self.target_mask[source],
        )


class CoNet(nn.Module):
    """Two towers that exchange activations."""

    def __init__(self, data: CrossDomainData, options: Options) -> None:
        super().__init__()
        assert isinstance(options.model, CoNetOptions)
        dim, hidden = options.model.dim, options.model.hidden
        widths = list(pairwise((3 * dim, *hidden)))
        self.user = nn.Embedding(data.num_users, dim)
        self.target_item = nn.Embedding(data.target_items.num, dim)
        self.target_category = nn.Embedding(data.target_items.num_categories, dim)
        self.source_item = nn.Embedding(data.source_items.num + 1, dim)
        self.source_category = nn.Embedding(data.source_items.num_categories + 1, dim)
        self.target_tower = nn.ModuleList(nn.Linear(*width) for width in widths)
        self.source_tower = nn.ModuleList(nn.Linear(*width) for width in widths)
        self.cross = nn.ModuleList(
            nn.Linear(*width, bias=False) for width in widths[: options.model.cross_layers]
        )
        self.target_head = nn.Linear(hidden[-1], 1)
        self.source_head = nn.Linear(hidden[-1], 1)

    def target_features(self, item: Tensor, category: Tensor) -> Tensor:
        return torch.cat([self.target_item(item), self.target_category(category)], -1)

    def source_features(self, item: Tensor, category: Tensor) -> Tensor:
        return torch.cat([self.source_item(item), self.source_category(category)], -1)

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The mean target loss and the loss of each source behaviour."""
        user = self.user(batch.user)
        t = torch.cat([user, self.target_features(batch.target_item, batch.target_category)], -1)
        s = torch.cat([user, self.source_features(batch.source_item, batch.source_category)], -1)
        for depth in range(len(self.target_tower)):
            next_t, next_s = self.target_tower[depth](t), self.source_tower[depth](s)
            if depth < len(self.cross):
                next_t = next_t + self.cross[depth](s)
                next_s = next_s + self.cross[depth](t)
            t, s = F.relu(next_t), F.relu(next_s)
        target = F.binary_cross_entropy_with_logits(
            self.target_head(t).squeeze(-1), batch.target_label
        )
        source = F.binary_cross_entropy_with_logits(
            self.source_head(s).squeeze(-1), batch.source_label, reduction="none"
        )
        return target, source * batch.has_source

    @torch.no_grad()
    def embeddings(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Candidate [B, D], source and target history [B, N, D], without gradient."""
        return (
            self.source_features(batch.source_item, batch.source_category),
            self.source_features(batch.source_history, batch.source_history_category),
            self.target_features(batch.target_history, batch.target_history_category),
        )


class Perceptron(nn.Module):
    """Equations 3 to 8."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        dim, told = 2 * options.model.dim, options.perceptron
        self.global_bias = told.global_bias
        self.global_mlp = _mlp(dim, told.global_hidden)
        self.local_mlp = _mlp(4 * dim, told.local_hidden)
        self.source_attention = nn.MultiheadAttention(2 * dim, told.heads, batch_first=True)
        self.target_attention = nn.MultiheadAttention(2 * dim, told.heads, batch_first=True)
        self.raw_gamma = nn.Parameter(torch.zeros(()))

    def forward(
        self,
        item: Tensor,
        source_history: Tensor,
        target_history: Tensor,
        source_mask: Tensor,
        target_mask: Tensor,
    ) -> Tensor:
        source = self.interest(self.source_attention, item, source_history, source_mask)
        target = self.interest(self.target_attention, item, target_history, target_mask)
        gamma_1 = self.global_bias + self.global_mlp(item).squeeze(-1)
        gamma_2 = self.local_mlp(torch.cat([source, target], -1)).squeeze(-1)
        gamma = torch.log2(1 + self.raw_gamma.exp())
        return gamma * 2 * torch.sigmoid(gamma_1 * gamma_2)

    def interest(
        self, attention: nn.MultiheadAttention, item: Tensor, history: Tensor, mask: Tensor
    ) -> Tensor:
        # An empty history is replaced by one behaviour of zeros.
        empty = ~mask.any(1)
        history = history.masked_fill(empty.view(-1, 1, 1), 0.0)
        mask = torch.cat([mask[:, :1] | empty.unsqueeze(1), mask[:, 1:]], 1)
        candidate = item.unsqueeze(1).expand(-1, history.shape[1], -1)
        x = torch.cat([history, candidate], -1)
        # The fastest way to call it: without the attention weights, in training mode.
        out, _ = attention(x, x, x, key_padding_mask=~mask, need_weights=False)
        return (out * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)


class Biao:
    """Algorithm 1, and the base model for `perceptron=None`."""

    def __init__(self, model: CoNet, perceptron: Perceptron | None, options: Options) -> None:
        self.model, self.perceptron, self.options = model, perceptron, options
        self.optimizer = torch.optim.Adam(
            model.parameters(), lr=options.inner.lr, weight_decay=options.inner.weight_decay
        )
        if perceptron is not None:
            self.outer_optimizer = torch.optim.SGD(perceptron.parameters(), lr=options.outer.lr)

    def weights(self, batch: Batch, embeddings: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        assert self.perceptron is not None
        return self.perceptron(*embeddings, batch.source_mask, batch.target_mask)

    def outer_step(self, batch: Batch, dev_batch: Batch) -> None:
        assert self.perceptron is not None
        params, phi = list(self.model.parameters()), list(self.perceptron.parameters())
        step_size, decay = self.options.outer.step_size, self.options.inner.weight_decay
        assert isinstance(step_size, float)
        dev_loss, _ = self.model.losses(dev_batch)
        v = torch.autograd.grad(dev_loss, params, materialize_grads=True)

        target, source = self.model.losses(batch)
        loss = target + (self.weights(batch, self.model.embeddings(batch)) * source).mean()
        grads = torch.autograd.grad(loss, params, create_graph=True)
        p = v
        for _ in range(self.options.outer.num_terms):
            hvp = torch.autograd.grad(grads, params, v, retain_graph=True, materialize_grads=True)
            v = [a - step_size * (b + decay * a) for a, b in zip(v, hvp, strict=True)]
            p = [a + b for a, b in zip(p, v, strict=True)]
        mixed = torch.autograd.grad(grads, phi, [step_size * a for a in p])
        for parameter, m in zip(phi, mixed, strict=True):
            parameter.grad = -m
        self.outer_optimizer.step()


def copy_from(
    model: nn.Module, weighter: nn.Module | None, own: CoNet, perceptron: Perceptron | None
) -> None:
    """Copy the parameters of the example's modules into the modules of this file."""
    own.load_state_dict({k.replace("_items.", "_"): v for k, v in model.state_dict().items()})
    if weighter is not None and perceptron is not None:
        perceptron.load_state_dict(in_this_layout(weighter.state_dict()))


def in_this_layout(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters of the library's perceptron, or their gradients, under the names used here.

    The library stores the joint projection of behaviour and candidate as separate blocks. The
    candidate's block of the keys, and the bias of the keys, do not exist there, because no weight
    depends on them. Here they are zero, and so are their gradients.
    """
    found = {k: v for k, v in tensors.items() if not k.startswith(("source_at", "target_at"))}
    for name in ("source_attention", "target_attention"):
        query, key = tensors[f"{name}.query_key.weight"].chunk(2)
        candidate_query, candidate_value = tensors[f"{name}.candidate.weight"].chunk(2)
        query_bias, value_bias = tensors[f"{name}.candidate.bias"].chunk(2)
        found |= {
            f"{name}.in_proj_weight": torch.cat(
                [
                    torch.cat([query, candidate_query], 1),
                    torch.cat([key, torch.zeros_like(key)], 1),
                    torch.cat([tensors[f"{name}.value.weight"], candidate_value], 1),
                ]
            ),
            f"{name}.in_proj_bias": torch.cat(
                [query_bias, torch.zeros_like(query_bias), value_bias]
            ),
            f"{name}.out_proj.weight": tensors[f"{name}.out.weight"],
            f"{name}.out_proj.bias": tensors[f"{name}.out.bias"],
        }
    return found


def _mlp(width: int, hidden: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in pairwise((width, *hidden)):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear((width, *hidden)[-1], 1))
