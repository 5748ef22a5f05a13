"""GPT-2 of transformers, with random weights: one weight for each of two sources of text.

    python benchmarks/clients/transformers_gpt2.py

A sequence is a sample. Its loss is the mean over its tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel

import reweight
from benchmarks.clients._report import Client, findings

TOKENS, LENGTH = 30, 12


def losses(model: Any, batch: dict[str, Tensor]) -> reweight.Losses:
    ids = batch["input_ids"]
    logits = model(input_ids=ids).logits[:, :-1].transpose(1, 2)
    loss = cross_entropy(logits, ids[:, 1:], reduction="none")
    return reweight.Losses(loss.mean(dim=1), inputs=batch["source"])


def outer_loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
    return losses(model, batch).weighted.mean()


def text(source: Tensor) -> dict[str, Tensor]:
    """Source 0 counts upwards; source 1 is noise."""
    counting = torch.randint(TOKENS, (len(source), 1)) + torch.arange(LENGTH)
    noise = torch.randint(TOKENS, (len(source), LENGTH))
    ids = torch.where(source[:, None] == 0, counting % TOKENS, noise)
    return {"input_ids": ids, "source": source}


def gpt2() -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=TOKENS,
        n_positions=LENGTH,
        n_embd=16,
        n_layer=2,
        n_head=2,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation="sdpa",
    )
    return GPT2LMHeadModel(config)


def client() -> Client:
    torch.manual_seed(0)
    model = gpt2().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=1e-2)
    rw = reweight.wrap(model, reweight.GroupWeighter(2), losses, outer_loss, optimizer)
    train = [text(torch.randint(2, (16,))) for _ in range(30)]
    dev = text(torch.zeros(16, dtype=torch.long))
    part = text(torch.arange(8) % 2), text(torch.zeros(8, dtype=torch.long))
    return Client(
        "GPT-2", "transformers", rw, losses, outer_loss, optimizer, train, dev, part, damping=8.0
    )


if __name__ == "__main__":
    print(findings(client))
