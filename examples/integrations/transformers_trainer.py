"""The Trainer of transformers learns how much each source of its training text is worth.

Three sources of sentences over the same words: one whose grammar is that of the dev set, one with
another grammar, one without any. The model is a small Llama with random weights.

    python examples/integrations/transformers_trainer.py
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import reweight
from reweight.integrations.transformers import OuterArguments, ReweightTrainer

WORDS, LENGTH = 32, 24
STRIDES = 1, 5, 0  # from a word to the next one, by source; 0: the next word is drawn at random


def sentences(number: int, sources: int, seed: int) -> list[dict[str, Any]]:
    """Rows of a training set; ``source`` is the column that the weighter reads."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for index in range(number):
        source = index % sources
        ids = torch.randint(WORDS, (LENGTH,), generator=generator)
        if STRIDES[source]:
            ids = (ids[0] + STRIDES[source] * torch.arange(LENGTH)) % WORDS
        rows.append({"input_ids": ids, "labels": ids, "source": source})
    return rows


def make_model() -> LlamaForCausalLM:
    """A Llama of 13,000 parameters."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
    )
    return LlamaForCausalLM(config)


def main() -> None:
    """Train without and with learned weights, and print both."""
    weighter = reweight.GroupWeighter(3)
    with tempfile.TemporaryDirectory() as folder:
        common: dict[str, Any] = {
            "args": TrainingArguments(
                output_dir=folder,
                max_steps=100,
                learning_rate=3e-3,
                logging_strategy="no",
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                use_cpu=True,
            ),
            "train_dataset": sentences(600, 3, seed=0),
            "eval_dataset": sentences(100, 1, seed=1),
        }
        plain = Trainer(make_model(), **common)
        weighted = ReweightTrainer(
            make_model(),
            **common,
            weighter=weighter,
            dev_dataset=sentences(100, 1, seed=2),
            group_column="source",
            outer_args=OuterArguments(every=5, lr=1e-1),
        )
        for name, trainer in (("plain", plain), ("learned weights", weighted)):
            trainer.train()
            print(f"{name:<16} loss of evaluation {trainer.evaluate()['eval_loss']:.3f}")
    weights = weighter.table().tolist()
    print("weights: same grammar {:.2f}, other grammar {:.2f}, none {:.2f}".format(*weights))


if __name__ == "__main__":
    main()
