"""A log of two domains with every gap that real logs have, and batches to try models on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import torch
from torch import Tensor, nn

from cdr.common.nested import map_tensors
from cdr.data import CrossDomainData
from cdr.data.batches import Batches, Candidates, History, PairBatch, Past
from cdr.data.schema import Items
from cdr.models import MODELS, CrossDomainModel, ModelOptions
from cdr.training.options import (
    InnerOptions,
    Options,
    OuterOptions,
    PerceptronOptions,
    SearchOptions,
)

NUM_USERS = 60


def gappy_log(seed: int = 0) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Source and target columns in which users 0, 5, … have no source behaviour in time, users
    1, 8, … one training row only, and users 2, 13, … two target behaviours, so none."""
    rng = np.random.default_rng(seed)
    user = np.arange(NUM_USERS)
    sizes = {"source": rng.integers(4, 20, NUM_USERS), "target": rng.integers(5, 10, NUM_USERS)}
    sizes["target"][user % 7 == 1] = 3
    sizes["target"][user % 11 == 2] = 2
    logs = []
    for domain, num_items in (("source", 100), ("target", 60)):
        size = sizes[domain]
        of = np.repeat(user, size)
        time = rng.integers(0, 500, len(of)) + (300 if domain == "target" else 0)
        if domain == "source":
            time[of % 5 == 0] += 1000
        item = np.concatenate([rng.choice(num_items, n, replace=False) for n in size])
        logs.append(
            {"user": of, "item": item, "rating": rng.integers(1, 6, len(of)), "timestamp": time}
        )
    return logs[0], logs[1]


def write_ratings(path: Path, source: dict[str, np.ndarray], target: dict[str, np.ndarray]) -> None:
    """The log as a csv file with the domains books and toys."""
    parts = [
        pa.table({**log, "domain": np.full(len(log["user"]), name)})
        for name, log in (("books", source), ("toys", target))
    ]
    pyarrow.csv.write_csv(pa.concat_tables(parts), path)


def batch_for(
    model: CrossDomainModel, data: CrossDomainData, history: int = 0, seed: int = 0
) -> PairBatch:
    """All training rows with what the model reads, in float64."""
    windows = model.windows(model.options, model.single_domain)
    batch = Batches(data, history, seed, windows).train_pairs(torch.arange(len(data.train)))
    # Beside float32 labels a loss of float64 logits is rounded to float32 on its way.
    return replace(
        batch, target_label=batch.target_label.double(), source_label=batch.source_label.double()
    )


def part(batch: Any, rows: Tensor) -> Any:
    """Some rows of a batch."""
    return map_tensors(lambda tensor: tensor[rows], batch)


def arrays(model: nn.Module) -> dict[str, np.ndarray]:
    """Parameters and buffers by name, for formulas written out in numpy."""
    return {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}


def entries(history: History, row: int) -> list[tuple[int, int]]:
    """The real (item, category) pairs of one history, oldest first."""
    mask = history.mask[row]
    pairs = zip(history.items.item[row][mask], history.items.category[row][mask], strict=True)
    return [(int(item), int(category)) for item, category in pairs]


def _with_other_pads(history: History, items: Items) -> History:
    """The same with the last item and category wherever nothing is real."""
    shown, mask = history.items, history.mask
    item = torch.where(mask, shown.item, items.num - 1)
    return History(
        Candidates(item, torch.where(mask, shown.category, items.num_categories - 1)), mask
    )


def with_other_pads(past: Past, data: CrossDomainData) -> Past:
    """The same for both domains."""
    return Past(
        None if past.source is None else _with_other_pads(past.source, data.source_items),
        None if past.target is None else _with_other_pads(past.target, data.target_items),
    )


def entropy(logits: np.ndarray, labels: Tensor) -> np.ndarray:
    """Binary cross-entropy by its definition."""
    p, y = 1 / (1 + np.exp(-logits)), labels.numpy()
    return -(y * np.log(p) + (1 - y) * np.log(1 - p))


SMALL: dict[str, dict[str, Any]] = {
    "conet": {"hidden": (4, 3)},
    "dasl": {"window": 3, "state": 3, "hidden": (4, 3)},
    "minet": {
        "target_window": 3,
        "source_window": 4,
        "attention": 3,
        "rank": 2,
        "hidden": (4, 3),
    },
}


def small(model: str) -> ModelOptions:
    """Options with which a model costs next to nothing."""
    return replace(MODELS[model].Options(), dim=2, **SMALL.get(model, {}))


def brief(model: str) -> Options:
    """An epoch of four small batches with two outer steps among them."""
    return Options(
        model=small(model),
        inner=InnerOptions(epochs=1, batch_size=64, lr=0.01),
        outer=OuterOptions(interval=2, batch_size=64),
        search=SearchOptions(epochs=1),
        perceptron=PerceptronOptions(history=3, heads=2, global_hidden=(4,), local_hidden=(4,)),
    )
