"""Weights and influences gathered by the ids of samples."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from reweight.hypergradient import Hypergradient
from reweight.valuation._ids import Ids, as_ids, named
from reweight.valuation.values import Floats, SampleValues
from reweight.wrapping import Reweighted

# Two passes over one sample in batches of different sizes agree to rounding in float32, which a
# deep model amplifies. A dropout or an augmentation changes losses by far more.
_ROUNDING = 1e-3


class Collector:
    """Gathers the weight and the influence of every sample over outer steps.

    The weight is that of the last step that saw the sample. The influence is the mean over these
    steps. Within one step, ``result.influence`` is the derivative by the weight in the mean over
    that batch. It is brought to the mean over all N samples that were gathered (times B/N), so that
    batches of different sizes count alike. With ``reduction="sum"`` it stays as it is.

    Only numbers are kept, four for each sample, however many steps there are. With several
    processes, each gathers its own samples. Influences of different processes compare if each
    process has the same share of the samples in every step.

    Args:
        rw: what :func:`reweight.wrap` returned.

    Example:
        >>> import torch, reweight
        >>> from reweight.valuation import Collector
        >>> _ = torch.manual_seed(0)
        >>> x, y, ids = torch.randn(8, 3), torch.randn(8), torch.arange(8)
        >>> model = torch.nn.Linear(3, 1)
        >>> def losses(model, batch):
        ...     return (model(batch[0]).squeeze(-1) - batch[1]).square()
        >>> rw = reweight.wrap(model, reweight.LossWeighter(), losses,
        ...                    outer_loss=lambda model, batch: losses(model, batch).mean())
        >>> collector = Collector(rw)
        >>> for batch in zip(x.split(4), y.split(4), ids.split(4)):         # in your loop
        ...     result = rw.outer_backward(batch, (x, y))
        ...     collector.add(batch[2], result, rw.weights(batch))
        >>> values = collector.values()
        >>> values.ids.tolist(), values.seen.tolist()
        ([0, 1, 2, 3, 4, 5, 6, 7], [1, 1, 1, 1, 1, 1, 1, 1])
    """

    def __init__(self, rw: Reweighted) -> None:
        if not isinstance(rw, Reweighted):
            raise TypeError(
                f"rw must be what reweight.wrap returned, got {type(rw).__name__}: "
                "Collector(rw), then add(ids, result, weights) in each outer step"
            )
        self._mean = rw.problem.reduction == "mean"
        # id -> last weight, sum of influences, times seen
        self._entries: dict[int | str, tuple[float, float, int]] = {}
        self._warned = False

    def add(self, ids: Any, result: Hypergradient, weights: Tensor) -> None:
        """Gather one outer step.

        A sample that stands twice in a batch is gathered twice. One warning is given if its two
        weights differ, since ids of groups look like that.

        Args:
            ids: ``[B]``, integers or strings, an id of its own for each training sample.
            result: what ``rw.outer_backward`` or ``rw.hypergradient`` returned for this batch.
            weights: ``[B]``, as ``rw.weights(batch)`` returns them.

        Raises:
            TypeError: ``result`` is not a ``Hypergradient``; ids that are no integers or strings.
            ValueError: different lengths, or values that are not finite.
        """
        if not isinstance(result, Hypergradient):
            raise TypeError(
                "result must be the Hypergradient that rw.outer_backward or rw.hypergradient "
                f"returned, got {type(result).__name__}"
            )
        names = as_ids(ids)
        w = _aligned("weights", weights, names)
        if not self._warned and len(clashes := _clashes(names, w)):
            self._warned = True
            warnings.warn(
                f"ids: {named(clashes)} stand more than once in one batch, with different weights. "
                "If they are ids of groups, pass one id for each sample; with random augmentation "
                "or dropout and sampling with replacement, the last weight is kept.",
                stacklevel=2,
            )
        self._gather(names, w, _aligned("result.influence", result.influence, names))

    def _gather(self, ids: Ids, weights: Floats, influence: Floats) -> None:
        if self._mean:
            influence = influence * len(influence)
        triples = zip(ids.tolist(), weights.tolist(), influence.tolist(), strict=True)
        for name, weight, value in triples:
            _, total, seen = self._entries.get(name, (0.0, 0.0, 0))
            self._entries[name] = weight, total + value, seen + 1

    def values(self) -> SampleValues:
        """What was gathered so far.

        Raises:
            ValueError: nothing was gathered.
        """
        if not self._entries:
            raise ValueError("nothing was gathered: call add(ids, result, weights) first")
        weights, totals, seen = (
            np.array(column) for column in zip(*self._entries.values(), strict=True)
        )
        samples = len(self._entries) if self._mean else 1
        return SampleValues(as_ids(self._entries), weights, totals / seen / samples, seen)

    def state_dict(self) -> dict[str, Any]:
        """The state to save, so that gathering can continue later."""
        return {"version": 1, "entries": dict(self._entries)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a state that :meth:`state_dict` returned.

        Raises:
            ValueError: ``state`` is not such a state.
        """
        if not isinstance(state, Mapping) or state.get("version") != 1 or "entries" not in state:
            raise ValueError("this is not a state of a Collector (version 1)")
        self._entries = dict(state["entries"])


def collect(
    rw: Reweighted,
    loader: Iterable[Any],
    ids: Callable[[Any], Any],
    dev_batch: Any = None,
) -> SampleValues:
    """The weight of every sample in one pass, and its influence if there is a dev batch.

    The weights are those of the present weighter and model. Modules stay in their mode: call
    ``model.eval()`` first for weights without dropout. Nothing is changed. Where weights depend on
    the rest of the batch, as those of ``LossWeighter`` do, use large shuffled batches.

    Args:
        rw: what :func:`reweight.wrap` returned.
        loader: batches of training samples, each sample once, as for ``rw.loss``.
        ids: ``batch -> [B]``, the ids of its samples: integers or strings.
        dev_batch: a batch for the outer loss. With it, the influence of each sample is gathered
            too, at the cost of an outer step for each batch.

    Raises:
        ValueError: a sample that was met twice with different weights; no batches; weights or
            losses that are not finite.

    Warns:
        UserWarning: the loader's data set has more samples than the loader yielded.

    Example:
        >>> import torch, reweight
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from reweight.valuation import collect
        >>> _ = torch.manual_seed(0)
        >>> data = TensorDataset(torch.randn(10, 3), torch.randn(10), torch.arange(10))
        >>> model = torch.nn.Linear(3, 1)
        >>> def losses(model, batch):
        ...     return (model(batch[0]).squeeze(-1) - batch[1]).square()
        >>> rw = reweight.wrap(model, reweight.LossWeighter(), losses,
        ...                    outer_loss=lambda model, batch: losses(model, batch).mean())
        >>> print(collect(rw, DataLoader(data, batch_size=4, shuffle=True), lambda batch: batch[2]))
        10 samples: weights mean 1, from 1 to 1; influence was not gathered
    """
    collector = Collector(rw)
    weights_of: dict[int | str, float] = {}
    for batch in loader:
        names, weights = as_ids(ids(batch), "ids(batch)"), rw.weights(batch)
        w = _aligned("weights", weights, names)
        _refuse_other_weights(weights_of, names, w)
        weights_of.update(zip(names.tolist(), w.tolist(), strict=True))
        if dev_batch is not None:
            influence = rw.hypergradient(batch, dev_batch).influence
            collector._gather(names, w, _aligned("influence", influence, names))
    if not weights_of:
        raise ValueError(
            "loader yielded no batches: pass a DataLoader or a list of batches. An iterator that "
            "was used before is at its end"
        )
    _warn_of_missing(loader, len(weights_of))
    if dev_batch is None:
        return SampleValues(as_ids(weights_of), np.array(list(weights_of.values())))
    return collector.values()


def _aligned(name: str, values: Tensor, ids: Ids) -> Floats:
    if tuple(values.shape) != ids.shape:
        raise ValueError(
            f"{name} has shape {tuple(values.shape)} for {len(ids)} ids: the ids must be those of "
            "the same batch, one for each weighted loss"
        )
    array: Floats = values.detach().double().cpu().numpy()
    if not np.isfinite(array).all():
        raise ValueError(f"{name} is not finite for the samples {named(ids[~np.isfinite(array)])}")
    return array


def _differ(one: Any, other: Any) -> Any:
    return np.abs(one - other) > _ROUNDING * np.maximum(1.0, np.abs(other))


def _clashes(ids: Ids, weights: Floats) -> Ids:
    """Ids that stand in a batch with different weights."""
    order = np.argsort(ids, kind="stable")
    names, w = ids[order], weights[order]
    return np.unique(names[1:][(names[1:] == names[:-1]) & _differ(w[1:], w[:-1])])


def _refuse_other_weights(known: dict[int | str, float], ids: Ids, weights: Floats) -> None:
    clashes = _clashes(ids, weights)
    if not len(clashes):
        before = np.array([known.get(name, np.nan) for name in ids.tolist()])
        clashes = ids[_differ(weights, before)]  # a comparison with NaN is false
    if len(clashes):
        raise ValueError(
            f"ids: {named(clashes)} were met more than once, with different weights. Either the "
            "ids are shared by several samples, or the loader yields samples twice while their "
            "weights depend on the rest of the batch (as those of LossWeighter do, or batch norm "
            "in training mode) or on chance (dropout, augmentation). Pass one id for each sample, "
            "and a loader that yields each sample once"
        )


def _warn_of_missing(loader: Iterable[Any], found: int) -> None:
    try:
        size = len(loader.dataset)  # type: ignore[attr-defined]
    except (AttributeError, TypeError):
        return  # a list of batches, or an iterable data set
    if found < size:
        warnings.warn(
            f"loader: {found} of the {size} samples of its data set were visited. With "
            "drop_last=True or a sampler the others have no values; use a plain loader of all "
            "samples for this pass.",
            stacklevel=3,
        )
