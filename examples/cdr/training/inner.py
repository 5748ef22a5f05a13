"""The inner problem of the variants that learn no weights, and the optimizer of all."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cdr.data import CrossDomainData, PairBatch
from cdr.models import CrossDomainModel
from cdr.training.optimizers import LazyAdam
from cdr.training.options import InnerOptions
from cdr.training.variants import plan


def inner_optimizer(parameters: Iterable[Tensor], options: InnerOptions) -> torch.optim.Optimizer:
    """The optimizer of a recommendation model."""
    if options.lazy_tables:
        return LazyAdam(parameters, lr=options.lr, weight_decay=options.weight_decay)
    # Most of a step is spent on embedding tables, where one fused pass is 4 to 5 times faster.
    return torch.optim.Adam(
        parameters,
        lr=options.lr,
        weight_decay=options.weight_decay,
        fused=True,
        capturable=options.cuda_graphs,
    )


def fixed_weights(
    variant: str, data: CrossDomainData, learned: NDArray[np.float32] | None, seed: int
) -> Tensor | None:
    """The weight of each source behaviour [len(data.source)]; None where none is given.

    Args:
        variant: See :mod:`cdr.training.variants`.
        data: On the device to train on.
        learned: The weights that its teacher has found, [len(data.source)].
        seed: Of the permutation, for the variant that permutes them.

    Raises:
        ValueError: The variant needs flags or learned weights, and there are none.
    """
    kind = plan(variant).weights
    if kind is None:
        return None
    if kind == "flags":
        if data.relevant is None:
            raise ValueError(f"{data.name} has no true relevance flags, so there is no oracle")
        return data.relevant.float()
    if learned is None or len(learned) != len(data.source):
        by = plan(variant).teacher
        raise ValueError(
            f"variant {variant}: learned has {0 if learned is None else len(learned)} weights for "
            f"{len(data.source)} source behaviours; pass the weights "
            + (f'of a result of "{by}" on the same data' if by else "that are found on folds")
        )
    weights = torch.from_numpy(learned)
    if kind == "permuted":
        generator = torch.Generator().manual_seed(seed)
        weights = weights[torch.randperm(len(weights), generator=generator)]
    return weights.to(data.source_offsets.device)


def unlearned_loss(
    model: CrossDomainModel, gamma: float, weights: Tensor | None
) -> Callable[[PairBatch], Tensor]:
    """The inner loss [] of the variants that learn no weights, as a function of a batch.

    Args:
        model: The recommendation model.
        gamma: Weight of the mean source loss, where no weights are given.
        weights: The weight of each source behaviour, [len(data.source)].
    """

    def loss(batch: PairBatch) -> Tensor:
        losses = model.losses(batch)
        target_loss = torch.as_tensor(losses.fixed)
        if weights is not None:
            fixed = weights.index_select(0, batch.source_row)
            return target_loss + (fixed * losses.weighted).mean()
        return target_loss + gamma * losses.weighted.mean() if gamma else target_loss

    return loss
