"""Deterministic scores of a model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cdr.data import Batches, Behaviors
from cdr.models import CrossDomainModel
from cdr.training.metrics import auc, grouped_auc, log_loss

# Source behaviours, spread evenly over the user's own, whose predictions are averaged. The authors
# draw one at random, which makes the AUC noisy.
NUM_SOURCE = 8
_CHUNK = 16_384


@dataclass(frozen=True, eq=False)
class Scores:
    """Predicted probability, label and user of each row; compared by identity."""

    probability: NDArray[np.float32]
    label: NDArray[np.float32]
    user: NDArray[np.int64]

    @property
    def equal(self) -> bool:
        """Whether all rows have the same probability, up to its last digits.

        The vectorized part of a function and the rest of an array may be rounded differently.
        """
        largest = self.probability.max(initial=0.0)
        least = self.probability.min(initial=largest)
        return bool(largest - least <= 4 * np.finfo(np.float32).eps * largest)

    def metrics(self) -> dict[str, float]:
        """AUC, LogLoss, and GAUC where users have several rows."""
        return {
            "auc": auc(self.probability, self.label),
            "log_loss": log_loss(self.probability, self.label),
            "gauc": grouped_auc(self.probability, self.label, self.user),
        }


@torch.no_grad()
def score(model: CrossDomainModel, batches: Batches, rows: Behaviors, num_source: int) -> Scores:
    """Predict ``rows`` beside ``num_source`` fixed source behaviours each, averaged.

    Processes that train together predict some rows each, and get the predictions of all.
    """
    was_training = model.training
    model.eval()
    shares = (torch.arange(num_source) + 0.5) / num_source
    processes, dtype = batches.processes, next(model.parameters()).dtype
    parts = [
        torch.stack([_probability(model, batches, chunk, float(share)) for share in shares]).mean(0)
        # Whole chunks for each, so that the numbers are those of one process bit for bit.
        if place % processes.size == processes.rank
        else torch.zeros_like(chunk.label, dtype=dtype)
        for place, chunk in enumerate(_chunks(rows))
    ]
    model.train(was_training)
    probability = processes.total(torch.cat(parts))
    return Scores(probability.cpu().numpy(), rows.label.cpu().numpy(), rows.user.cpu().numpy())


def _probability(
    model: CrossDomainModel, batches: Batches, rows: Behaviors, share: float
) -> Tensor:
    logits: Tensor = model.target_logits(batches.pairs(rows, torch.full_like(rows.label, share)))
    return logits.sigmoid()


def _chunks(rows: Behaviors) -> list[Behaviors]:
    places = torch.arange(len(rows), device=rows.user.device)
    return [rows.select(chunk) for chunk in torch.split(places, _CHUNK)]
