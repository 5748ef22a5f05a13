"""What a run has shown of learned weights, in sentences: also that nothing was learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cdr.report.rounded import p_value, short, signed
from cdr.report.summary import Summary
from cdr.training import plan

Weights = NDArray[np.float32]

# Within 5 % of each other, a weighted loss is the unweighted one but for a factor: less than what
# another learning rate changes.
_SAME = 0.05
# Nine of ten: a perceptron may leave some at the ends of its range and have told apart the others.
_MOST = 0.9
# Of a weight's range: there the gradient of a sigmoid is at most a 25th of that in its middle.
_END = 0.01
# Seeds that correlate by less have under a hundredth of their variance in common.
_AGREE = 0.1
_LEVEL = 0.05


class Weighing(Protocol):
    """A finished training, with its weights if it has learned any."""

    @property
    def weights(self) -> Weights | None:
        """Of each source behaviour, [n]."""


def conclusions(
    results: Mapping[str, Sequence[Weighing]], rows: Mapping[str, Summary], *, same_data: bool
) -> tuple[str, ...]:
    """Whether weights were learned, and whether they gain anything.

    Args:
        results: By variant the trainings of each seed.
        rows: By variant their summary.
        same_data: Whether all seeds have the same data.
    """
    told, gains = [], {}
    for variant, several in results.items():
        kind, row = plan(variant), rows[variant]
        weights = [each.weights for each in several if each.weights is not None]
        # One weight for all behaviours is what ConstantWeighter is asked for.
        if weights and variant != "constant":
            told += on_weights(row.label, weights, same_data)
        # A search trains on fewer rows than the base model, for the sake of the weights alone.
        if (kind.source == "learned" and not kind.keeps_last) or kind.weights == "learned":
            gains[variant] = row
    return (*told, *on_gains(gains))


def on_weights(label: str, weights: Sequence[Weights], same_data: bool) -> list[str]:
    """Whether weights tell behaviours apart.

    Args:
        label: Model and variant.
        weights: Of each seed the weight of each behaviour, [n] each.
        same_data: Whether the behaviours are the same for all seeds.

    Example:
        >>> on_weights("CoNet+ours", [np.full(9, 1.01, dtype=np.float32)], True)[0][:66]
        'CoNet+ours: nothing was learned, since the weights are all near 1 '
    """
    verdicts = [_verdict(each) for each in weights]
    told = [
        _counted(label, text, verdicts.count(verdict), len(weights))
        for verdict, text in _VERDICTS.items()
        if verdict in verdicts
    ]
    return told or (_on_agreement(label, weights) if same_data and len(weights) > 1 else [])


_VERDICTS = {
    "one": "nothing was learned, since the weights are all near 1 (nine of ten are within 5 % of "
    "it): what gives the weights has hardly moved. A smaller --outer.interval, more epochs, or a "
    "higher --outer.lr (of a search --search.lr) move it",
    "equal": "nothing was learned, since the weights are all nearly the same, and not 1: they act "
    "as one weight for the whole source, as --inner.gamma does",
    "zero": "nothing was learned from the source, since nearly all weights are below .05: they "
    "have run to 0, and the source is left out. A lower --outer.lr (of a search "
    "--search.lr) or fewer epochs keep them",
    "ends": "the weights are saturated. Nine of ten are at the ends of their range, below a "
    "hundredth of the largest weight or within a hundredth of it: they divide the behaviours in "
    "two, and hardly change any more. A lower --outer.lr (of a search "
    "--search.lr) keeps them from the ends",
}


def _verdict(weights: Weights) -> str:
    """A key of the verdicts, or "" if weights tell behaviours apart."""
    low, middle, high = np.quantile(weights, ((1 - _MOST) / 2, 0.5, (1 + _MOST) / 2))
    if high < _SAME:
        return "zero"
    if high - low <= 2 * _SAME * middle:
        return "one" if low >= 1 - _SAME and high <= 1 + _SAME else "equal"
    largest = weights.max()
    ends = (weights < _END * largest) | (weights > (1 - _END) * largest)
    return "ends" if ends.mean() >= _MOST else ""


def _counted(label: str, text: str, count: int, seeds: int) -> str:
    where = "" if count == seeds else f" in {count} of {seeds} seeds"
    return f"{label}{where}: {text}."


def _on_agreement(label: str, weights: Sequence[Weights]) -> list[str]:
    correlations = np.asarray(np.corrcoef(np.stack(weights)))
    agreement = float(correlations[np.triu_indices(len(weights), 1)].mean())
    if agreement >= _AGREE:
        return []
    shown = f"{agreement:.2f}".replace("-", "−")
    return [
        f"{label}: the weights are noise. Seeds do not agree on which behaviours weigh more (the "
        f"mean correlation of their weights is {shown})."
    ]


def on_gains(rows: Mapping[str, Summary]) -> list[str]:
    """Whether learned weights give more than the base model, as far as that can be told.

    Args:
        rows: By variant those that train with learned weights, compared with the base model.
    """
    return [_on_gain(row) for row in rows.values() if row.comparison is not None]


def _on_gain(row: Summary) -> str:
    c = row.comparison
    assert c is not None
    error = f"95 % interval over users [{signed(c.low)}, {signed(c.high)}]"
    if c.p_value is not None:
        error += f", p {_with_sign(p_value(c.p_value))} over seeds"
    chance = c.low <= 0 <= c.high or (c.p_value is not None and c.p_value >= _LEVEL)
    difference = f"{signed(c.difference)} AUC over the base model"
    if chance:
        return (
            f"{row.label}: no gain is shown. {difference} is within its error ({error}). A gain of "
            f"{short(c.detectable)} would be found in 80 % of all cases, a smaller one in fewer."
        )
    if c.difference < 0:
        return f"{row.label}: worse than the base model, by {short(-c.difference)} AUC ({error})."
    return f"{row.label}: a gain of {difference} ({error})."


def _with_sign(p: str) -> str:
    return p if p.startswith("<") else f"= {p}"
