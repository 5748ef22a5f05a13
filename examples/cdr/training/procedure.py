"""A variant from beginning to end: a training, or weights found on folds and then a training."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cdr.common import ALONE, Processes
from cdr.data import CrossDomainData
from cdr.training import epochs
from cdr.training.begun import OnStep
from cdr.training.crossfit import Found, cross_fitted
from cdr.training.metrics import auc, auc_contributions
from cdr.training.one_shot import by_held_out_loss, by_influence
from cdr.training.options import Options
from cdr.training.result import Result
from cdr.training.saves import Saves
from cdr.training.spread import spread
from cdr.training.variants import plan

_FINDERS: Mapping[str, Callable[..., Found]] = {
    "crossfit": cross_fitted,
    "influence": by_influence,
    "held-out-loss": by_held_out_loss,
}
# The training with weights that differ more than those found.
_SPREAD = "spread"
_TOLD = {"crossfit": "the weights", _SPREAD: "the weights, spread"}
PLAIN = ("base", "0", "S")
"""What weights are compared with."""
WITH_WEIGHTS = tuple(_TOLD)
"""Names that :attr:`Result.kept` has where weights are used."""
CROSSFIT_EDITION = 3
"""Raised when cross-fitting comes to find other weights, or to keep another model, with the same
options."""


def train(
    variant: str,
    data: CrossDomainData,
    options: Options,
    seed: int,
    *,
    learned: NDArray[np.float32] | None = None,
    processes: Processes = ALONE,
    saves: Saves | None = None,
    finished: Callable[[str], Result | None] = lambda variant: None,
    on_step: OnStep = lambda epoch, step, steps, best: None,
) -> Result:
    """Train a variant and score it.

    Where weights are found on folds, a new model is trained with them on all rows. Cross-fitting
    finds their order; how far they differ is a matter of its learning rate and of how long the
    folds agree. If that is little, another model is trained with weights that differ more, see
    :func:`cdr.training.spread.spread`. Which model is kept is for validation rows to say, see
    :func:`preferred`.

    Args, returns and errors are those of :func:`cdr.training.epochs.train`, which trains one model,
    and

    Args:
        finished: Called by cross-fitting with the name of what it compares with: the result of that
            variant with the same data, options and seed, or None, and it is trained.
    """

    def one(part: str, name: str, weights: NDArray[np.float32] | None = None) -> Result:
        place = saves if saves is None or part == variant else saves.part(part)
        return epochs.train(
            name,
            data,
            options,
            seed,
            learned=weights,
            processes=processes,
            saves=place,
            on_step=on_step,
        )

    how = plan(variant)
    if not how.finds:
        return one(variant, variant, learned)
    started = time.perf_counter()
    assert how.weights is not None
    found = _FINDERS[how.weights](
        data,
        options,
        seed,
        processes=processes,
        saves=saves and saves.part("folds"),
        on_step=on_step,
    )
    cross_fits, note = how.weights == "crossfit", found.note
    weights = {} if found.weights is None else {variant: found.weights}
    if cross_fits and found.weights is not None and (wider := spread(found.weights)) is not None:
        weights[_SPREAD] = wider
    # In all, the source counts as much as in the base model.
    gamma = options.inner.gamma
    trained = {part: one(part, variant, gamma * given) for part, given in weights.items()}
    kept = None
    if cross_fits:
        trained |= {name: finished(name) or one(name, name) for name in PLAIN}
        kept = preferred(trained)
        note += f"; kept: {_TOLD.get(kept, kept)}"
    relative = weights.get(kept or variant, found.weights)
    if relative is None:
        relative = np.ones(len(data.source), np.float32)
    result = replace(
        trained[kept or variant],
        weights=gamma * relative,
        outer=found.records,
        seconds=time.perf_counter() - started,
        note=note,
        kept=kept,
    )
    if data.relevant is not None:
        result.weight_auc = auc(relative, data.relevant.cpu().numpy())
    return result


def preferred(trained: Mapping[str, Result]) -> str:
    """The name of the training to keep, by validation rows.

    The one with the weights found unless the base model's AUC is higher. What nothing was learned
    of, how far weights differ and learning less from the source, is kept only if its AUC is higher
    by more than a standard error of the difference (over users): on few validation rows it often
    is by chance.

    Args:
        trained: By name :data:`PLAIN`, and those with weights if there are any.
    """
    found = trained.get("crossfit")
    best = "crossfit" if found is not None and found.best >= trained["base"].best else "base"
    for name in (_SPREAD, *PLAIN[1:]):
        if name in trained and _clearly_above(trained[name], trained[best]):
            best = name
    return best


def _clearly_above(one: Result, other: Result) -> bool:
    """Whether its validation AUC is higher by more than a standard error of the difference."""
    contributions = []
    for scores in (one.valid, other.valid):
        assert scores is not None
        _, user = np.unique(scores.user, return_inverse=True)
        contributions.append(auc_contributions(scores.probability, scores.label, user))
    error = np.sqrt(np.square(contributions[0] - contributions[1]).sum())
    return bool(one.best - other.best > error)
