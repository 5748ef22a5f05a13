"""Weights of the batches of several inner steps, made in one call."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor

from cdr.common import Processes, tensors_in, with_tensors
from cdr.data import Batches, PairBatch
from cdr.models import CrossDomainModel
from cdr.training.weighing import Weighing
from reweight import BehavioralPerceptron


def weighted_ahead(
    model: CrossDomainModel,
    weighing: Weighing,
    batches: Batches,
    rows: Iterator[Tensor],
    most: int,
    steps_left: Callable[[], int],
) -> Iterator[PairBatch]:
    """Batches with their weights, which are made for several batches at once.

    Between two outer steps the perceptron does not change. The embeddings that it reads do, a
    little in every step: the weights of a batch are those at the model's parameters before the
    first step of its group. In return, the fixed costs of many small operations are paid once.
    Until its first outer step the perceptron is not asked: all of its weights are 1.

    Args:
        model: Embeds what the perceptron reads.
        weighing: Of a behavioral perceptron, which gives the weights.
        batches: Makes the batches.
        rows: The training rows of each batch.
        most: Batches in a group, at most.
        steps_left: Inner steps that come before the next outer step, at least 1. A group ends
            there. It is called when a group has been used up.
    """
    while True:
        left = steps_left()
        # As few groups as may be, of equal size.
        several = list(islice(rows, math.ceil(left / math.ceil(left / most))))
        if not several:
            return
        yield from _weighted(model, weighing, batches, several)


def scores(model: CrossDomainModel, perceptron: BehavioralPerceptron, batch: PairBatch) -> Tensor:
    """The perceptron's score of each source behaviour of a batch [B], without gradient."""
    inputs = model.behavior_inputs(batch)
    assert inputs is not None
    with torch.no_grad():
        return perceptron.scores(inputs)


def _weighted(
    model: CrossDomainModel, weighing: Weighing, batches: Batches, several: Sequence[Tensor]
) -> Iterator[PairBatch]:
    together, perceptron = batches.processes, weighing.weighter
    assert isinstance(perceptron, BehavioralPerceptron)
    sizes = [len(together.share(rows)) for rows in several]
    if weighing.moved:
        batch = batches.train_pairs(*several, flat=perceptron.mask_keys)
        parts = torch.split(scores(model, perceptron, batch), sizes)
        with torch.no_grad():
            # σ may compare within a batch, which is that of all processes.
            weight = torch.cat([_normalized(perceptron, together, part) for part in parts])
    else:
        batch = batches.unseen().train_pairs(*several)
        weight = torch.ones_like(batch.source_label)
    # The steps do not read the histories.
    batch = replace(
        batch, weight=weight, source_history=None, target_history=None, source_facts=None
    )
    tensors = zip(*(torch.split(tensor, sizes) for tensor in tensors_in(batch)), strict=True)
    return (with_tensors(batch, part) for part in tensors)


def _normalized(perceptron: BehavioralPerceptron, together: Processes, own: Tensor) -> Tensor:
    """The weights of this process's scores [B] in the batch of all processes."""
    scores = together.rows_of_all(own)
    weights = perceptron.normalize(torch.cat(scores))
    return torch.split(weights, [len(part) for part in scores])[together.rank]
