"""The learned weights of a study, with the data that they are of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from cdr.data import CrossDomainData
from cdr.models import MODELS
from cdr.paper.study import Cell, Results

Floats = NDArray[np.float64]
Weighted = tuple[CrossDomainData, NDArray[np.float32]]
"""Data, and the learned weight of each source behaviour [len(data.source)]."""


def learned_weights(results: Results) -> Iterator[tuple[Cell, str, Iterable[Weighted]]]:
    """For each cell whose weights are known a title, and lazily the data and weights of each seed.

    Args:
        results: Of a study that trains a variant which learns weights.
    """
    for cell, seeds in results.runs.items():
        source = results.sources[cell.scenario]
        title = f"{cell.scenario.heading} · {MODELS[cell.model].label}"
        learned = {seed: run.weights for seed, run in seeds.items() if run.weights is not None}
        if learned:
            yield cell, title, ((source.load(seed), w) for seed, w in learned.items())


def mean_by(group: NDArray[np.int64], values: NDArray[np.generic], num: int) -> Floats:
    """Mean of the values of each group, [num]; NaN for an empty one.

    Args:
        group: Group of each value, [n].
        values: Values, [n].
        num: Number of groups.
    """
    with np.errstate(invalid="ignore"):
        return np.bincount(group, values, minlength=num) / np.bincount(group, minlength=num)
