"""LoRA of peft on a GPT-2 of transformers: the inner parameters are those of the adapters.

python benchmarks/clients/peft_lora.py
"""

from __future__ import annotations

import torch
from peft import LoraConfig, get_peft_model

import reweight
from benchmarks.clients._report import Client, findings
from benchmarks.clients.transformers_gpt2 import gpt2, losses, outer_loss, text


def client() -> Client:
    torch.manual_seed(0)
    adapters = LoraConfig(
        r=2, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM"
    )
    model = get_peft_model(gpt2(), adapters)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-2, weight_decay=1e-2)
    rw = reweight.wrap(model, reweight.GroupWeighter(2), losses, outer_loss, optimizer)
    train = [text(torch.randint(2, (16,))) for _ in range(30)]
    dev = text(torch.zeros(16, dtype=torch.long))
    part = text(torch.arange(8) % 2), text(torch.zeros(8, dtype=torch.long))
    return Client("LoRA on GPT-2", "peft", rw, losses, outer_loss, optimizer, train, dev, part)


if __name__ == "__main__":
    print(findings(client))
