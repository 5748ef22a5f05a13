"""The sets of options that ``--preset`` names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from cdr.models import MODELS, CrossDomainModel
from cdr.training.options import Options

PresetName = Literal["default", "paper", "authors"]

# By preset, the options that differ from the defaults; a model adds its own (`presets`).
_PRESETS: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "paper": {
        "inner.lr": 5e-3,
        "inner.weight_decay": 0.0,
        "inner.epochs": 10,
        "outer.optimizer": "sgd",
        "outer.lr": 1e-2,
        "outer.interval": 100,
        "outer.batch_size": 128,
        "outer.dev": "reshuffled",
        "outer.step_size": 1.0,
        "perceptron.history": 50,
        "perceptron.global_bias": 0.0,
        "perceptron.normalization": "sigmoid",
    },
    "authors": {
        "model.dev_head": True,
        "inner.lr": 1e-2,
        "inner.weight_decay": 0.0,
        "inner.batch_size": 64,
        "inner.epochs": 5,
        "outer.optimizer": "sgd",
        "outer.lr": 1e-2,
        "outer.weight_decay": 2.0,
        "outer.clip": 10.0,
        "outer.interval": 100,
        "outer.batch_size": 256,
        "outer.dev": "in-order",
        "outer.step_size": 1.0,
        "outer.heads": False,
        "perceptron.history": 50,
        "perceptron.global_hidden": (),
        "perceptron.local_hidden": (32, 16),
        "perceptron.global_bias": 0.0,
        "perceptron.normalization": "softmax",
        "perceptron.mask_keys": False,
        "perceptron.gamma_map": "relu",
    },
}


def preset(name: PresetName, model: str) -> Options:
    """The options that a preset gives to a model.

    Args:
        name: "default": found by search (docs/cdr/index.md); "paper": what the paper says
            (BIAO, section 4.3); "authors": what the authors' released code does for CoNet, except
            that there the candidate's embedding in the global branch is not detached.
        model: A name of :data:`cdr.models.MODELS`.
    """
    kind = MODELS[model]
    options = Options(model=kind.Options() if name == "default" else kind.original)
    return options.changed(
        {**_PRESETS[name], **_source_batch(name, kind), **kind.presets.get(name, {})}
    )


def _source_batch(name: PresetName, kind: type[CrossDomainModel]) -> dict[str, Any]:
    """The paper draws source behaviours from all, where the model can do without pairs."""
    independent = name == "paper" and not kind.pairs_users
    return {"inner.source_batch": "independent"} if independent else {}
