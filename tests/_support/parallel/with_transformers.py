"""A training by the Trainer of transformers: two processes, or one with twice the batch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments

import reweight
from _support.parallel.launch import TIMEOUT, main, parameters
from reweight.integrations.transformers import (
    OuterArguments,
    ReweightTrainer,
    causal_lm_losses,
    causal_lm_token_losses,
)

VOCABULARY = 17


def gpt2() -> Any:
    torch.manual_seed(0)
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 16}
    tokens = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(**sizes, **tokens, **rates)).double()


def texts(number: int, seed: int) -> list[dict[str, Any]]:
    """Sequences of very different lengths."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for i in range(number):
        length = 2 + int(torch.randint(11, (), generator=generator))
        ids = torch.randint(VOCABULARY, (12,), generator=generator)
        labels = torch.where(torch.arange(12) < length, ids, -100)
        rows.append({"input_ids": ids, "labels": labels, "source": i % 2})
    return rows


def trainer(
    folder: Path, size: int, losses: Any, weighter: Any, accumulated: int, **settings: Any
) -> ReweightTrainer:
    """One of ``size`` processes, with the micro-batches or the rows of both if it is alone."""
    joined = accumulated == 1  # a weighter that compares samples has to have them in one batch
    more = 2 if size == 1 else 1
    arguments = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4 * (more if joined else 1),
        "gradient_accumulation_steps": accumulated * (1 if joined else more),
        "per_device_eval_batch_size": 3 * more,
        "max_steps": 4,
        "learning_rate": 1e-2,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "use_cpu": True,
        "ddp_timeout": TIMEOUT.seconds,
        **settings,
    }
    return ReweightTrainer(
        gpt2(),
        TrainingArguments(**arguments),
        weighter=weighter,
        losses=losses,
        train_dataset=texts(32, 0),
        dev_dataset=None if weighter is None else texts(10, 1),
        group_column="source" if isinstance(weighter, reweight.GroupWeighter) else None,
        weight_column="source" if weighter is None else None,
        outer_args=OuterArguments(every=1, lr=5e-2),
    )


def learned(of: ReweightTrainer) -> Tensor:
    return parameters(of.model, *filter(None, [of.weighter]))


def run(folder: Path, rank: int, size: int) -> dict[str, Any]:
    if size > 1:
        os.environ.setdefault("ACCELERATE_TORCH_DEVICE", "cpu")
    torch.set_default_dtype(torch.float64)
    try:
        return _run(folder, rank, size)
    finally:
        torch.set_default_dtype(torch.float32)


def _run(folder: Path, rank: int, size: int) -> dict[str, Any]:
    saved: list[str] = []
    save = torch.save
    torch.save = lambda what, path, *args, **kwargs: (  # type: ignore[assignment]
        saved.append(os.path.basename(path)),
        save(what, path, *args, **kwargs),
    )
    found: dict[str, Any] = {}
    keep = {"save_strategy": "steps", "save_steps": 2}
    try:
        made = trainer(folder, size, causal_lm_losses, reweight.GroupWeighter(2), 2, **keep)
        made.train()
    finally:
        torch.save = save
    found["sources"] = learned(made)
    found["losses"] = torch.tensor([x["loss"] for x in made.state.log_history if "loss" in x])
    found["saved"] = saved.count("reweight.pt")
    made = trainer(folder, size, causal_lm_losses, reweight.GroupWeighter(2), 2, **keep)
    made.train(resume_from_checkpoint=str(folder / "checkpoint-2"))
    found["resumed"] = learned(made)

    made = trainer(folder, size, causal_lm_losses, None, 2)
    made.train()
    found["known"] = learned(made)

    for name, losses in (("tokens", causal_lm_token_losses), ("sequences", causal_lm_losses)):
        torch.manual_seed(rank)  # as without a seed: the processes follow the first one
        made = trainer(folder, size, losses, reweight.LossWeighter(4).double(), 1)
        made.train()
        found[name] = learned(made)
    return found


if __name__ == "__main__":
    main(run)
