"""A new training with weights that were learned before."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from reweight.valuation.values import SampleValues


class FixedWeights(nn.Module):
    """The weight of each sample, looked up by id; nothing in it is learned.

    It has the ``forward`` of a weighter, and needs no ``wrap``: multiply your losses with it. The
    table is a buffer, so it moves with ``.to(device)`` and is part of ``state_dict()``.

    Args:
        values: the weights; ids must be integers.
        normalize: divide the weights by their mean, so that learning rate and weight decay mean
            what they mean in a plain training.

    Raises:
        TypeError: the ids are strings, which tensors can't hold.
        ValueError: there are no samples, or with ``normalize`` the mean is not above 0.

    Example:
        >>> import torch
        >>> from reweight.valuation import FixedWeights, SampleValues
        >>> weights = FixedWeights(SampleValues([10, 11, 12], [0.0, 1.0, 2.0]))
        >>> losses, ids = torch.tensor([5.0, 3.0]), torch.tensor([12, 11])
        >>> weights(losses, ids).tolist()
        [2.0, 1.0]
        >>> float((weights(losses, ids) * losses).mean())               # the loss to train on
        6.5
    """

    ids: Tensor
    weights: Tensor

    def __init__(self, values: SampleValues, *, normalize: bool = True) -> None:
        super().__init__()
        if not len(values):
            raise ValueError("values holds no samples")
        if values.ids.dtype.kind == "U":
            raise TypeError(
                f"values has strings as ids, such as {values.ids[0]!r}, and a batch of tensors "
                "can't hold them. Train with WeightedTrainAndDev, which looks weights up in the "
                "data set, or number the samples"
            )
        weights = values.weights / _mean(values.weights) if normalize else values.weights
        self.register_buffer("ids", torch.tensor(values.ids))
        self.register_buffer("weights", torch.tensor(weights, dtype=torch.get_default_dtype()))

    def forward(self, losses: Tensor, inputs: Tensor) -> Tensor:
        """Look the weights up.

        Args:
            losses: per-sample losses ``[B]``; only shape and dtype are used.
            inputs: ids, int64 ``[B]``.

        Returns:
            Weights ``[B]``, in the dtype of ``losses``, without a gradient.

        Raises:
            TypeError: ``inputs`` is not an int64 tensor.
            ValueError: ``inputs`` has another shape than ``losses``, or an id has no weight. Inside
                of ``torch.compile``, such an id gets the weight NaN.
        """
        if not isinstance(inputs, Tensor) or inputs.dtype != torch.int64:
            kind = inputs.dtype if isinstance(inputs, Tensor) else type(inputs).__name__
            raise TypeError(f"inputs must be the ids as an int64 tensor [B], got {kind}")
        if inputs.shape != losses.shape:
            raise ValueError(
                f"inputs has shape {tuple(inputs.shape)} for losses of shape "
                f"{tuple(losses.shape)}: take the ids from the same batch, one for each loss"
            )
        rows = torch.searchsorted(self.ids, inputs).clamp(max=len(self.ids) - 1)
        unknown = self.ids[rows] != inputs
        # A compiled graph can't read values: there, the loss becomes NaN.
        if not torch.compiler.is_compiling() and bool(unknown.any()):
            raise ValueError(
                f"inputs: {int(unknown.sum())} of {len(inputs)} ids have no weight, the first is "
                f"{int(inputs[unknown][0])}. The table holds {len(self.ids)} ids from "
                f"{int(self.ids[0])} to {int(self.ids[-1])}: collect the weights of all samples, "
                "or train on those that have one"
            )
        return self.weights[rows].to(losses.dtype).masked_fill(unknown, math.nan)

    def extra_repr(self) -> str:
        """The size of the table."""
        return f"{len(self.ids)} samples"


class WeightedTrainAndDev(Dataset[tuple[Any, Tensor]]):
    """Train samples with their weights and dev samples with one weight, as one data set.

    Dev samples that served to learn the weights are good training samples for the final model. Its
    entries are ``(sample, weight)``, first those of ``train``, then those of ``dev``. A DataLoader
    makes ``(batch, weights [B])`` of them, with ``shuffle=True`` and workers as usual. Where your
    loader has a ``collate_fn``, wrap it: :class:`WeightedCollate`.

    Args:
        train: map-style data set of the training samples.
        dev: map-style data set of the dev samples; its entries look like those of ``train``.
        values: the learned weights. They are divided by their mean over ``train``.
        ids: ``[len(train)]``, the id of each training sample, in the order of ``train``; default:
            its position.
        dev_weight: the weight of each dev sample; 1 is that of a mean training sample.

    Attributes:
        weights: ``[len(train) + len(dev)]``, float32.

    Raises:
        TypeError: a data set without a length.
        ValueError: a training sample without a weight, weights whose mean is not above 0, ids of
            another number, a negative ``dev_weight``.

    Example:
        >>> import torch
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from reweight.valuation import SampleValues, WeightedTrainAndDev
        >>> train, dev = TensorDataset(torch.arange(3.0)), TensorDataset(torch.arange(7.0, 9.0))
        >>> both = WeightedTrainAndDev(train, dev, SampleValues([0, 1, 2], [0.0, 0.5, 1.0]))
        >>> for (x,), weights in DataLoader(both, batch_size=5):
        ...     print(x.tolist(), weights.tolist())
        [0.0, 1.0, 2.0, 7.0, 8.0] [0.0, 1.0, 2.0, 1.0, 1.0]
    """

    def __init__(
        self,
        train: Dataset[Any],
        dev: Dataset[Any],
        values: SampleValues,
        *,
        ids: Any = None,
        dev_weight: float = 1.0,
    ) -> None:
        self._parts = train, dev
        self._num_train, num_dev = _length("train", train), _length("dev", dev)
        if not (math.isfinite(dev_weight) and dev_weight >= 0.0):
            raise ValueError(f"dev_weight={dev_weight!r}: it must be a finite number of at least 0")
        own = range(self._num_train) if ids is None else ids
        if len(own) != self._num_train:
            raise ValueError(
                f"ids: there are {len(own)} of them for {self._num_train} training samples: pass "
                "one for each entry of train, in its order"
            )
        weights = values.weights_of(own)
        both = np.concatenate([weights / _mean(weights), np.full(num_dev, float(dev_weight))])
        self.weights = torch.tensor(both, dtype=torch.float32)

    def __len__(self) -> int:
        return len(self.weights)

    def __getitem__(self, index: int) -> tuple[Any, Tensor]:
        if index < 0:
            raise IndexError(f"index {index}: positions start at 0")
        weight = self.weights[index]  # raises an IndexError at the end, which ends an iteration
        train, dev = self._parts
        late = index - self._num_train
        return (train[index] if late < 0 else dev[late]), weight


@dataclass(frozen=True)
class WeightedCollate:
    """A ``collate_fn`` for entries ``(sample, weight)``, of the one for samples.

    A class, so that workers of any start method can load it.

    Attributes:
        collate_fn: makes a batch of a list of samples.

    Example:
        >>> import torch
        >>> from reweight.valuation import WeightedCollate
        >>> pad = torch.nn.utils.rnn.pad_sequence
        >>> items = [(torch.ones(2), torch.tensor(0.5)), (torch.ones(1), torch.tensor(1.0))]
        >>> batch, weights = WeightedCollate(pad)(items)
        >>> batch.tolist(), weights.tolist()
        ([[1.0, 1.0], [1.0, 0.0]], [0.5, 1.0])
    """

    collate_fn: Callable[[list[Any]], Any] = default_collate

    def __call__(self, items: Sequence[tuple[Any, Tensor]]) -> tuple[Any, Tensor]:
        """The batch of the samples, and their weights ``[B]``."""
        return self.collate_fn([sample for sample, _ in items]), torch.stack([w for _, w in items])


def _mean(weights: Any) -> float:
    mean = float(weights.mean()) if len(weights) else 1.0
    if not mean > 0.0:
        raise ValueError(
            f"values: the mean weight of the training samples is {mean:.3g}, and it must be above "
            "0. All weights ran to 0: lower the outer learning rate, or stop the search earlier"
        )
    return mean


def _length(name: str, data: Dataset[Any]) -> int:
    try:
        return len(data)  # type: ignore[arg-type]
    except TypeError as error:
        raise TypeError(
            f"{name} is a {type(data).__name__} without a length: its samples must have positions, "
            "as those of a map-style data set have"
        ) from error
