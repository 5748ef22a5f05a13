"""LightGCN of RecBole on ml-100k: one weight for each user.

    python benchmarks/clients/recbole_lightgcn.py

BPRLoss returns a mean, so the loss of each pair is written out. EmbLoss stays as it is: it is the
fixed part. A dev batch is a train batch that is held out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

import reweight
from benchmarks.clients._recbole import model_and_batches
from benchmarks.clients._report import Client, findings


def losses(model: Any, batch: Any) -> reweight.Losses:
    user, positive, negative = (batch[k] for k in ("user_id", "item_id", "neg_item_id"))
    users, items = model()
    margin = (users[user] * (items[positive] - items[negative])).sum(dim=1)
    rows = model.user_embedding(user), *map(model.item_embedding, (positive, negative))
    penalty = model.reg_weight * model.reg_loss(*rows, require_pow=model.require_pow)
    return reweight.Losses(-logsigmoid(margin), fixed=penalty, inputs=user)


def outer_loss(model: Any, batch: Any) -> Tensor:
    return losses(model, batch).weighted.mean()


def client() -> Client:
    model, batches = model_and_batches("LightGCN", 42, embedding_size=8, reg_weight=1e-2)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    rw = reweight.wrap(model, reweight.GroupWeighter(model.n_users), losses, outer_loss, optimizer)
    *train, dev, part = batches
    part = part[:16], dev[:16]
    return Client(
        "LightGCN", "recbole", rw, losses, outer_loss, optimizer, train, dev, part, damping=0.01
    )


if __name__ == "__main__":
    print(findings(client))
