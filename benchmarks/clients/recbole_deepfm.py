"""DeepFM of RecBole on ml-100k: one weight for each user.

    python benchmarks/clients/recbole_deepfm.py

``model.loss`` returns a mean, so binary cross-entropy is called with reduction="none". A dev batch
is a train batch that is held out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

import reweight
from benchmarks.clients._recbole import model_and_batches
from benchmarks.clients._report import Client, findings

USERS = 944  # of ml-100k, with the padding 0
SETTINGS = {
    "load_col": {
        "inter": ["user_id", "item_id", "rating", "timestamp"],
        "user": ["user_id", "age", "gender", "occupation"],
        "item": ["item_id", "release_year", "class"],
    },
    "threshold": {"rating": 4},  # the label: whether the rating is at least 4
    "train_neg_sample_args": None,
    "eval_args": {"mode": "labeled"},
    "metrics": ["AUC"],
    "valid_metric": "AUC",
    "embedding_size": 4,
    "mlp_hidden_size": [16, 16],
}


def losses(model: Any, batch: Any) -> reweight.Losses:
    loss = binary_cross_entropy_with_logits(model(batch), batch["label"], reduction="none")
    return reweight.Losses(loss, inputs=batch["user_id"])


def outer_loss(model: Any, batch: Any) -> Tensor:
    return losses(model, batch).weighted.mean()


def client() -> Client:
    model, batches = model_and_batches("DeepFM", 42, **SETTINGS)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=1e-4)
    rw = reweight.wrap(model, reweight.GroupWeighter(USERS), losses, outer_loss, optimizer)
    *train, dev, part = batches
    part = part[:16], dev[:16]
    return Client(
        "DeepFM", "recbole", rw, losses, outer_loss, optimizer, train, dev, part, damping=0.1
    )


if __name__ == "__main__":
    print(findings(client))
