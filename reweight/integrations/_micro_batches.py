"""The losses of the micro-batches of one optimizer step as those of one batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from reweight._problem import LossesFn, MicroBatches, rows_of
from reweight._tensors import map_tensors, tensors_in
from reweight.losses import Losses


def over_micro_batches(losses: LossesFn | None, model: Any) -> LossesFn:
    """``losses`` that also take :class:`MicroBatches`: ``[B1 + B2 + ...]`` losses.

    Fixed parts are averaged by the rows of the micro-batches. What the weighter reads is
    concatenated along the first dimension.

    Args:
        losses: as :func:`reweight.wrap` takes them; default ``model.losses``.
        model: the model.

    Raises:
        TypeError: there are no losses.
    """
    if losses is None and not callable(getattr(model, "losses", None)):
        raise TypeError(
            f"losses is missing and {type(model).__name__} has no method losses(batch), which "
            "returns one loss per sample: write one, or pass losses=lambda model, batch: ..."
        )
    each_batch: LossesFn = losses or (lambda module, batch: module.losses(batch))

    def grouped(model: Any, batch: Any) -> Losses | Tensor:
        if not isinstance(batch, MicroBatches):
            return each_batch(model, batch)
        found: list[Any] = [each_batch(model, each) for each in batch.batches]
        parts = [each if isinstance(each, Losses) else Losses(each) for each in found]
        if len(parts) == 1:
            return parts[0]
        rows = [rows_of(each)[0] for each in batch.batches]
        total = sum(rows) or 1
        fixed = sum(n / total * part.fixed for n, part in zip(rows, parts, strict=True))
        inputs = _concatenated([part.inputs for part in parts])
        joined = Losses(torch.cat([part.weighted for part in parts]), fixed, inputs)
        if all(part.outputs is not None for part in parts):  # those of Losses.of
            object.__setattr__(joined, "outputs", tuple(part.outputs for part in parts))
        return joined

    return grouped


def _concatenated(inputs: list[Any]) -> Any:
    """Containers of tensors ``[B, ...]``, as one container of longer tensors."""
    first, *others = (tensors_in(each) for each in inputs)
    shapes = [tuple(x.shape) for x in first]
    if any(len(each) != len(first) for each in others) or () in shapes:
        raise ValueError(
            f"the weighter's inputs have shapes {shapes}, and micro-batches are joined along the "
            "first dimension: give every tensor of Losses(inputs=...) one row per sample"
        )
    places = {id(x): place for place, x in enumerate(first)}
    join: Callable[[Tensor], Tensor] = lambda x: torch.cat(  # noqa: E731
        [x, *(each[places[id(x)]] for each in others)]
    )
    return map_tensors(join, inputs[0])
