"""RecBole's trainer on per-sample losses, with checkpoints that resume bit for bit."""

from __future__ import annotations

import abc
import os
import random
from typing import Any

import numpy as np
import torch
from recbole.trainer import Trainer
from recbole.utils import get_trainer
from torch import Tensor

from reweight.integrations._recbole_losses import PerSampleLosses

KEY = "reweight"  # of a checkpoint, beside RecBole's own entries


class WeightedTrainer(Trainer, abc.ABC):  # type: ignore[misc]
    """What trainers with weights share; a subclass computes the loss of a batch."""

    def __init__(self, config: Any, model: Any, losses: PerSampleLosses) -> None:
        usual = get_trainer(config["MODEL_TYPE"], config["model"])
        if usual is not Trainer:
            raise ValueError(
                f"model: RecBole trains {config['model']} with {usual.__name__}, which does more "
                "than to minimise one loss, and this trainer would leave that out. Use a model "
                "that RecBole trains with Trainer, or reweight.wrap in a loop of your own."
            )
        if not config["single_spec"]:
            raise ValueError(
                "config: RecBole runs on several processes here (nproc above 1), which this "
                "trainer does not serve. Use one, or reweight.wrap in a loop of your own."
            )
        super().__init__(config, model)
        self.losses = losses
        self._train_data: Any = None
        self._verified = False
        self._resumed: dict[str, Any] | None = None

    @abc.abstractmethod
    def _loss(self, interaction: Any) -> Tensor:
        """The weighted loss of a train batch."""

    def _own_state(self) -> dict[str, Any]:
        return {}

    def _load_own_state(self, state: dict[str, Any]) -> None:
        """Load what :meth:`_own_state` returned."""

    def _loaders(self) -> list[Any]:
        """Loaders whose order is a random state of its own."""
        return [self._train_data]

    def _train_epoch(
        self, train_data: Any, epoch_idx: int, loss_func: Any = None, show_progress: bool = False
    ) -> Any:
        if loss_func is not None:
            raise ValueError("loss_func: this trainer has a loss of its own; do not pass another")
        self._train_data = train_data
        if self._resumed is not None:
            _set_random_state(self._resumed, self._loaders())
            self._resumed = None
        return super()._train_epoch(train_data, epoch_idx, self._verified_loss, show_progress)

    def _verified_loss(self, interaction: Any) -> Tensor:
        if not self._verified:
            self.losses.verify(self.model, interaction)
            self._verified = True
        return self._loss(interaction)

    def _save_checkpoint(self, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        file = kwargs.get("saved_model_file", self.saved_model_file)
        super()._save_checkpoint(epoch, verbose, **kwargs)
        state = _load(file, "cpu")
        state[KEY] = {**self._own_state(), "random": _random_state(self._loaders())}
        # RecBole's file stays until the larger one is complete.
        torch.save(state, f"{file}.part", pickle_protocol=4)
        os.replace(f"{file}.part", file)

    def resume_checkpoint(self, resume_file: Any) -> None:
        """Load a checkpoint of such a trainer; the next ``fit`` continues it bit for bit.

        The file is unpickled, as RecBole does: load only files that you trust.

        Raises:
            ValueError: a checkpoint of another model, or of a trainer without weights.
        """
        state = _load(resume_file, self.device)
        if KEY not in state:
            raise ValueError(
                f"resume_file={str(resume_file)!r} was not written by {type(self).__name__}, so it "
                "has no weights. For its model alone, use "
                'model.load_state_dict(torch.load(file, weights_only=False)["state_dict"]).'
            )
        theirs, own = state["config"]["model"], self.config["model"]
        if theirs.lower() != own.lower():
            raise ValueError(f"resume_file={str(resume_file)!r} holds {theirs}, the model is {own}")
        self._load_own_state(state[KEY])
        self.model.load_state_dict(state["state_dict"])
        self.model.load_other_parameter(state["other_parameter"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.saved_model_file = str(resume_file)
        self.start_epoch = state["epoch"] + 1
        self.cur_step = state["cur_step"]
        self.best_valid_score = state["best_valid_score"]
        self._resumed = state[KEY]["random"]

    def evaluate(
        self,
        eval_data: Any,
        load_best_model: bool = True,
        model_file: Any = None,
        show_progress: bool = False,
    ) -> Any:
        """Evaluate as RecBole does, whose own way to load the best model torch 2.6 refuses.

        Raises:
            FileNotFoundError: no best model was saved.
        """
        if load_best_model:
            state = _load(model_file or self.saved_model_file, self.device)
            self.model.load_state_dict(state["state_dict"])
            self.model.load_other_parameter(state["other_parameter"])
        return super().evaluate(eval_data, load_best_model=False, show_progress=show_progress)


def _load(file: Any, device: Any) -> dict[str, Any]:
    """A checkpoint of RecBole, which holds its Config and so is no file of tensors alone."""
    state: dict[str, Any] = torch.load(file, map_location=device, weights_only=False)
    return state


def _generators(loaders: list[Any]) -> list[torch.Generator]:
    found = (getattr(loader, "generator", None) for loader in loaders)
    return [each for each in found if each is not None]


def _random_state(loaders: list[Any]) -> dict[str, Any]:
    """All that negative samples, dropout and the order of batches are drawn from."""
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": np.random.get_state(),
        "python": random.getstate(),
        "loaders": [each.get_state() for each in _generators(loaders)],
    }


def _set_random_state(state: dict[str, Any], loaders: list[Any]) -> None:
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all([each.cpu() for each in state["cuda"]])
    np.random.set_state(state["numpy"])
    random.setstate(state["python"])
    for generator, own in zip(_generators(loaders), state["loaders"], strict=True):
        generator.set_state(own.cpu())
