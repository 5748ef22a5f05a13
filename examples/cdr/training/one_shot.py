"""Weights that are read off trained models at once, without a search."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

import reweight
from cdr.common import ALONE, Processes
from cdr.data import CrossDomainData, PairBatch
from cdr.training.begun import OnStep
from cdr.training.calibration import calibrated_outer_loss
from cdr.training.crossfit import Found
from cdr.training.epochs import run_to_end
from cdr.training.loop import Training
from cdr.training.options import Options
from cdr.training.pairs import Fold
from cdr.training.saves import Saves
from reweight import ConstantWeighter

_CHUNK = 8192
_Floats = NDArray[np.float64]


def by_influence(
    data: CrossDomainData,
    options: Options,
    seed: int,
    *,
    processes: Processes = ALONE,
    saves: Saves | None = None,
    on_step: OnStep = lambda epoch, step, steps, best: None,
) -> Found:
    """Weights from what each source behaviour does for target rows that are held out.

    As many models as there are folds are trained with the mean source loss, each without its fold
    of target rows and to its best epoch. The influence of a behaviour is the derivative of the
    calibrated loss of the fold to the behaviour's weight at 1, which needs no search: one
    hypergradient. It is added up over the folds.

    Args and returns are those of :func:`cdr.training.crossfit.cross_fitted`.
    """
    folds = options.search.folds
    total = np.zeros(len(data.source))
    for number in range(folds):
        fold = Fold(number, folds)
        training = Training("base", data, options, seed, None, processes, fold=fold)
        training = _trained(training, processes, saves and saves.part(f"fold{number}"), on_step)
        found = _influence(training, data, options, fold.rows(len(data.train), seed))
        total += found / max(np.abs(found).mean(), np.finfo(np.float64).tiny)
    return Found(_soft_ranks(total), [], f"influence on {folds} folds of target rows")


def by_held_out_loss(
    data: CrossDomainData,
    options: Options,
    seed: int,
    *,
    processes: Processes = ALONE,
    saves: Saves | None = None,
    on_step: OnStep = lambda epoch, step, steps, best: None,
) -> Found:
    """Weights from the loss of each source behaviour under a model that has not trained on it.

    As many models as there are folds are trained, each without its fold of the source behaviours.
    The higher the loss, the less a behaviour fits what the others say, and the less it counts.

    Args and returns are those of :func:`cdr.training.crossfit.cross_fitted`.
    """
    folds, num = options.search.folds, len(data.source)
    fold = np.random.default_rng(seed).permutation(num) % folds
    loss = np.empty(num)
    for number in range(folds):
        kept = (fold != number).astype(np.float32)
        training = Training("held-out-loss", data, options, seed, kept, processes)
        training = _trained(training, processes, saves and saves.part(f"fold{number}"), on_step)
        own = torch.from_numpy(np.flatnonzero(fold == number)).to(data.source.user.device)
        with torch.no_grad():
            parts = [
                binary_cross_entropy_with_logits(
                    training.model(batch)[1], batch.source_label, reduction="none"
                )
                for batch in _beside_own_rows(training, data, own)
            ]
        loss[fold == number] = torch.cat(parts).double().cpu().numpy()
    return Found(_soft_ranks(-loss), [], f"loss under {folds} models trained without the behaviour")


def _trained(
    training: Training, processes: Processes, saves: Saves | None, on_step: OnStep
) -> Training:
    """To the end, and back to the best epoch."""
    training = run_to_end(training, processes, saves, on_step)
    training.load_best()
    training.model.eval()
    return training


def _influence(
    training: Training, data: CrossDomainData, options: Options, held_out: Tensor
) -> _Floats:
    """What the held-out rows' calibrated loss falls by as the weight of each behaviour rises."""
    rw = reweight.wrap(
        training.model,
        ConstantWeighter(),
        lambda model, batch: model.losses(batch),
        calibrated_outer_loss,
        optimizer=training.optimizer,
        hypergradient=options.outer.hypergradient(),
    )
    dev = training.batches.train_pairs(held_out)
    rows = torch.arange(len(data.source), device=data.source.user.device)
    parts = []
    for batch in _beside_own_rows(training, data, rows):
        influence = rw.outer_backward(batch, dev).influence
        # Of a mean over the chunk, whose last one may be shorter.
        parts.append(-influence.double().cpu().numpy() * len(batch))
    return np.concatenate(parts)


def _beside_own_rows(
    training: Training, data: CrossDomainData, rows: Tensor
) -> Iterator[PairBatch]:
    """Source behaviours, each beside the last target row of its user that is trained on."""
    target = torch.zeros(data.num_users, dtype=torch.long, device=rows.device)
    target[data.train.user] = torch.arange(len(data.train), device=rows.device)
    for part in torch.split(rows, _CHUNK):
        beside = data.train.select(target[data.source.user[part]])
        yield training.batches.source_rows(part, beside=beside)


def _soft_ranks(values: _Floats) -> NDArray[np.float32]:
    """Weights from 0 to 2 that rise with values: twice the rank, with a mean of 1."""
    order = np.unique(values, return_inverse=True, return_counts=True)
    _, inverse, counts = order
    last = np.cumsum(counts)
    middle = (last - (counts - 1) / 2 - 0.5)[inverse] / len(values)
    return (2 * middle).astype(np.float32)
