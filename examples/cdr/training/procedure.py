"""A variant from beginning to end: a training, or weights found on folds and then a training."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cdr.common import ALONE, Processes
from cdr.data import CrossDomainData
from cdr.training import loop
from cdr.training.crossfit import Found, cross_fitted
from cdr.training.loop import Result
from cdr.training.metrics import auc
from cdr.training.one_shot import by_held_out_loss, by_influence
from cdr.training.options import Options
from cdr.training.saves import Saves
from cdr.training.variants import plan

_FINDERS: Mapping[str, Callable[..., Found]] = {
    "crossfit": cross_fitted,
    "influence": by_influence,
    "held-out-loss": by_held_out_loss,
}
PLAIN = ("base", "0", "S")
"""What weights have to be better than."""


def train(
    variant: str,
    data: CrossDomainData,
    options: Options,
    seed: int,
    *,
    learned: NDArray[np.float32] | None = None,
    processes: Processes = ALONE,
    saves: Saves | None = None,
    on_step: Callable[[int, int, int, float], None] = lambda epoch, step, steps, best: None,
) -> Result:
    """Train a variant and score it.

    Where weights are found on folds, a new model is trained with them on all rows. What
    cross-fitting finds is used only if it is no worse than no weights at all: kept is that model of
    it and of :data:`PLAIN`, trained alike, which has the highest validation AUC.

    Args, returns and errors are those of :func:`cdr.training.loop.train`, which trains one model.
    """

    def one(name: str, weights: NDArray[np.float32] | None = None) -> Result:
        place = saves if saves is None or name == variant else saves.part(name)
        return loop.train(
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
        return one(variant, learned)
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
    weights = found.weights
    trained = {} if weights is None else {variant: one(variant, options.inner.gamma * weights)}
    note = found.note
    if how.weights == "crossfit":
        trained |= {name: one(name) for name in PLAIN}
        chosen = max(trained, key=lambda name: trained[name].best)
        note += f"; kept: {'the weights' if chosen == variant else chosen}"
    else:
        chosen = variant
    if weights is None:
        weights = np.ones(len(data.source), dtype=np.float32)
    result = replace(
        trained[chosen],
        weights=weights,
        outer=found.records,
        seconds=time.perf_counter() - started,
        note=note,
    )
    if data.relevant is not None:
        result.weight_auc = auc(weights, data.relevant.cpu().numpy())
    return result
