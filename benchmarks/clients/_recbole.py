"""Batches of ml-100k, which RecBole ships, and a model of RecBole."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, init_seed


def model_and_batches(name: str, count: int, **settings: Any) -> tuple[Any, list[Any]]:
    """A model for ml-100k, and train batches (``Interaction`` objects of RecBole)."""
    settings = {"use_gpu": False, "train_batch_size": 256, **settings}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # RecBole 1.2.1 is older than its dependencies
        config = Config(name, "ml-100k", config_dict=settings)
        init_seed(0, True)
        loader, _, _ = data_preparation(config, create_dataset(config))
        model = get_model(name)(config, loader.dataset)
    return model.train(), list(itertools.islice(loader, count))
