"""The micro-batches of one optimizer step as one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reweight._problem import LossesFn
from reweight._tensors import map_tensors, tensors_in
from reweight.losses import Losses


@dataclass(frozen=True, eq=False)
class MicroBatches:
    """The batches whose gradients one optimizer step accumulated.

    An outer step on them is the outer step on one batch of all their samples. Each is evaluated by
    itself, as in training, so they need not have the same shapes. Every sample counts alike, while
    accumulated means count every batch alike: the two are the same for batches of one size.

    Args:
        batches: at least one batch, each as ``losses`` takes it.
    """

    batches: Sequence[Any]


def over_micro_batches(losses: LossesFn | None, model: Any) -> LossesFn:
    """``losses`` that also take :class:`MicroBatches`: ``[B1 + B2 + ...]`` losses.

    Fixed parts are averaged, as accumulation does. What the weighter reads is concatenated along
    the first dimension.

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
        fixed = sum(part.fixed for part in parts) / len(parts)
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
