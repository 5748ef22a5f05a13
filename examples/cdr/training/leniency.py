"""A recommender without any learned representation: who likes much, what is liked, and by whom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cdr.data import Behaviors, CrossDomainData
from cdr.training.evaluation import Scores
from cdr.training.metrics import auc

Floats = NDArray[np.float64]

STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Penalties on squared effects that are searched; the larger, the smoother."""

_PRIOR = 5.0  # source behaviours of an average user, added to those of each
_EFFECTS = ("user", "item", "category")
# Beyond it the AUC does not change in the fourth decimal.
_PRECISE = {"maxiter": 500, "ftol": 1e-8, "gtol": 1e-3}
_ROUNDS = 2  # of the search, after which no strength changed on the data at hand


@dataclass(frozen=True, eq=False)
class Leniency:
    """A fitted model: the log odds of a positive are a sum of effects.

    Attributes:
        bias: Common to all rows.
        effects: By kind (user, item, category) an effect of each.
        slope: What a unit of `generosity` adds.
        generosity: Of each user, see :func:`generosity`; [users].
        category: Of each item, [items].
        strengths: By kind the penalty.
    """

    bias: float
    effects: Mapping[str, Floats]
    slope: float
    generosity: Floats
    category: NDArray[np.int64]
    strengths: Mapping[str, float]

    def log_odds(self, rows: Behaviors) -> Floats:
        """The log odds that each of some target rows is positive."""
        total = self.bias + self.slope * self.generosity[rows.user.numpy()]
        for kind, of_row in _indices(rows, self.category).items():
            total = total + self.effects[kind][of_row]
        return np.asarray(total)

    def scores(self, rows: Behaviors) -> Scores:
        """Predicted probability, label and user of target rows."""
        from scipy.special import expit

        probability = expit(self.log_odds(rows)).astype(np.float32)
        return Scores(probability, rows.label.numpy(), rows.user.numpy())


def fit_leniency(data: CrossDomainData, *, source: bool = True) -> Leniency:
    """Logistic regression on smoothed effects of user, item and category and one number a user.

    An effect is smoothed by a penalty of half its strength times its square, added to the sum of
    the losses. The number is how generously the user rates in the source (:func:`generosity`); its
    slope has no penalty. The strengths are those with the highest validation AUC, searched for one
    kind after another. The model is fitted on the training rows of the target, without chance.

    Args:
        data: On the CPU.
        source: Whether the number from the source is used; without it nothing of the source is.
    """
    category = data.target_items.category.numpy()
    given = generosity(data) if source else np.zeros(data.num_users)
    rows = data.train
    label = rows.label.numpy().astype(np.float64)
    indices = _indices(rows, category)
    sizes = dict(
        zip(
            _EFFECTS,
            (data.num_users, data.target_items.num, data.target_items.num_categories),
            strict=True,
        )
    )
    best: dict[tuple[float, ...], tuple[float, Leniency]] = {}

    def fitted(strengths: Mapping[str, float]) -> tuple[float, Leniency]:
        key = tuple(strengths.values())
        if key not in best:
            start = list(best.values())[-1][1] if best else None
            parts = _fit(label, indices, sizes, given[rows.user.numpy()], strengths, start)
            model = Leniency(*parts, given, category, dict(strengths))
            valid = data.valid
            best[key] = auc(model.log_odds(valid), valid.label.numpy()), model
        return best[key]

    chosen = dict.fromkeys(_EFFECTS, 1.0)
    for _ in range(_ROUNDS):
        for kind in _EFFECTS:
            tried = {s: fitted({**chosen, kind: s})[0] for s in STRENGTHS}
            chosen[kind] = max(tried, key=lambda s, tried=tried: tried[s])  # type: ignore[misc]
    return fitted(chosen)[1]


def generosity(data: CrossDomainData) -> Floats:
    """How generously each user rates in the source, [users].

    The log odds of the share of positives among the source behaviours that are trained on, with
    five of an average user added, less those of the average: 0 for a user without any.
    """
    user, label = data.source.user.numpy(), data.source.label.numpy()
    mean = float(np.clip(label.mean(), 1e-6, 1 - 1e-6))
    count = np.bincount(user, minlength=data.num_users)
    share = (np.bincount(user, label, data.num_users) + _PRIOR * mean) / (count + _PRIOR)
    return np.asarray(np.log(share / (1 - share)) - np.log(mean / (1 - mean)))


def _indices(rows: Behaviors, category: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    item = rows.item.numpy()
    return dict(zip(_EFFECTS, (rows.user.numpy(), item, category[item]), strict=True))


def _fit(
    label: Floats,
    indices: Mapping[str, NDArray[np.int64]],
    sizes: Mapping[str, int],
    given: Floats,
    strengths: Mapping[str, float],
    start: Leniency | None,
) -> tuple[float, dict[str, Floats], float]:
    """Bias, effects and slope that minimize the penalized sum of losses."""
    from scipy.optimize import minimize
    from scipy.special import expit

    ends = np.cumsum([2, *sizes.values()])
    penalty = np.concatenate([[0.0, 0.0], *(np.full(sizes[k], strengths[k]) for k in sizes)])

    # Each variable on the scale of its own curvature, at most a quarter a row: many fewer steps.
    counts = [np.bincount(indices[k], minlength=sizes[k]) for k in sizes]
    squares = np.concatenate([np.array([len(label), given @ given]), *counts])
    scale = 1.0 / np.sqrt(squares / 4 + penalty + 1e-6)

    def split(x: Floats) -> dict[str, Floats]:
        return {k: x[a:b] for k, a, b in zip(sizes, ends[:-1], ends[1:], strict=True)}

    def loss(z: Floats) -> tuple[float, Floats]:
        x = z * scale
        effects = split(x)
        logit = x[0] + x[1] * given + sum(effects[k][indices[k]] for k in sizes)
        wrong = expit(logit) - label
        of_effects = [np.bincount(indices[k], wrong, sizes[k]) for k in sizes]
        gradient = np.concatenate([np.array([wrong.sum(), wrong @ given]), *of_effects])
        value = np.logaddexp(0.0, logit).sum() - label @ logit + 0.5 * penalty @ x**2
        return float(value), (gradient + penalty * x) * scale

    if start is None:
        x = np.zeros(ends[-1])
    else:
        x = np.concatenate([[start.bias, start.slope], *(start.effects[k] for k in sizes)])
    found = scale * minimize(loss, x / scale, jac=True, method="L-BFGS-B", options=_PRECISE).x
    return float(found[0]), split(found), float(found[1])
