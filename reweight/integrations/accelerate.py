"""Learned weights inside a training loop of Accelerate."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from accelerate import Accelerator
from accelerate.data_loader import DataLoaderStateMixin
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

import reweight
from reweight._problem import LossesFn, MicroBatches, OuterFn
from reweight.integrations._dev_batches import DevBatches
from reweight.integrations._micro_batches import over_micro_batches
from reweight.integrations._precision import warn_of_half_precision
from reweight.integrations._processes import data_parallel, through
from reweight.weighters import SampleWeighter
from reweight.wrapping import Reweighted

__all__ = ["MicroBatches", "dev_batches", "wrap"]


def wrap(
    accelerator: Accelerator,
    model: nn.Module,
    weighter: SampleWeighter,
    losses: LossesFn | None = None,
    outer_loss: OuterFn | None = None,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    *,
    outer_optimizer: Optimizer | None = None,
    **options: Any,
) -> Reweighted:
    """Connect a weighter to a model that ``accelerator.prepare`` returned.

    Args:
        accelerator: the ``Accelerator`` of the loop.
        model: the prepared model; its innermost module is wrapped. With several processes, the
            passes of ``loss`` go through the wrapper that averages their gradients.
        weighter: computes the weights; it is moved to the accelerator's device, in place.
        losses: ``(model, batch) -> Losses | Tensor [B]``; it gets the innermost module.
        outer_loss: ``(model, batch) -> Tensor []``.
        optimizer: the prepared optimizer, or several; only read.
        outer_optimizer: the optimizer of the weighter, as you made it, for ``save_state`` and
            ``load_state``, which keep it and the weighter.
        options: further arguments of :func:`reweight.wrap`, such as ``hypergradient``.

    Returns:
        The wrapped model. Its outer steps take any of the loop's batches, or the
        :class:`MicroBatches` of an optimizer step, and are computed in the precision of the
        parameters: Accelerate's autocast is off in them.

    Raises:
        TypeError: ``accelerator`` is none, ``outer_optimizer`` is a prepared one, or an argument
            of :func:`reweight.wrap` of a wrong kind.
        NotImplementedError: several processes train the model by other means than
            ``DistributedDataParallel``, or the model is not a prepared one.

    Example:
        >>> import torch, reweight
        >>> from accelerate import Accelerator
        >>> from reweight.integrations import accelerate as reweight_accelerate
        >>> _ = torch.manual_seed(0)
        >>> accelerator = Accelerator(cpu=True)
        >>> model = torch.nn.Linear(3, 1)
        >>> model, optimizer = accelerator.prepare(
        ...     model, torch.optim.SGD(model.parameters(), lr=0.1))
        >>> weighter = reweight.LossWeighter()
        >>> outer_optimizer = torch.optim.Adam(weighter.parameters(), lr=1e-3)
        >>> def losses(model, batch):
        ...     return (model(batch[0]).squeeze(-1) - batch[1]).square()
        >>> def outer_loss(model, batch):
        ...     return losses(model, batch).mean()
        >>> rw = reweight_accelerate.wrap(accelerator, model, weighter, losses, outer_loss,
        ...                               optimizer, outer_optimizer=outer_optimizer)
        >>> batch, dev = ((torch.randn(8, 3), torch.randn(8)) for _ in range(2))
        >>> accelerator.backward(rw.loss(batch))
        >>> optimizer.step()
        >>> rw.outer_backward(batch, dev).influence.shape
        torch.Size([8])
    """
    if not isinstance(accelerator, Accelerator):
        raise TypeError(
            f"accelerator must be the Accelerator of your loop, got {type(accelerator).__name__}: "
            "wrap(accelerator, model, weighter, losses, outer_loss, optimizer)"
        )
    parallel = data_parallel(model, accelerator.num_processes)
    if isinstance(outer_optimizer, AcceleratedOptimizer):
        raise TypeError(
            "outer_optimizer is one that accelerator.prepare returned: pass it as you made it. A "
            "prepared one leaves steps out while gradients are accumulated, and divides gradients "
            "by the scale of the inner loss"
        )
    inner = accelerator.unwrap_model(model) if parallel is None else parallel.module
    losses = over_micro_batches(losses, inner)
    weighter.to(accelerator.device)
    reweighted = reweight.wrap(inner, weighter, losses, outer_loss, _plain(optimizer), **options)
    if parallel is not None:
        reweighted = _Parallel(reweighted, parallel)
    warn_of_half_precision(reweighted)
    accelerator.register_for_checkpointing(reweighted)
    if outer_optimizer is not None:
        accelerator.register_for_checkpointing(outer_optimizer)
    return reweighted


class _Parallel(Reweighted):
    """A wrapped model whose losses have gradients that a wrapper averages over the processes."""

    def __init__(self, reweighted: Reweighted, parallel: DistributedDataParallel) -> None:
        super().__init__(reweighted.problem, reweighted.strategy)
        self._parallel = parallel

    def loss(self, batch: Any) -> Tensor:
        return through(self._parallel, super().loss, batch)


def dev_batches(accelerator: Accelerator, loader: Iterable[Any]) -> DevBatches:
    """The batches of a dev loader, endless, on the accelerator's device.

    ``save_state`` and ``load_state`` keep the position. Random numbers of the training are left as
    they are. Of several processes, all get the same batches, or each its own part of them if the
    loader has a ``DistributedSampler``.

    Args:
        accelerator: the ``Accelerator`` of the loop.
        loader: a ``DataLoader`` as you made it, or a list of batches.

    Raises:
        TypeError: ``loader`` is a prepared one, or can be read only once.

    Example:
        >>> import torch
        >>> from accelerate import Accelerator
        >>> from reweight.integrations.accelerate import dev_batches
        >>> dev = dev_batches(Accelerator(cpu=True), [torch.zeros(2), torch.ones(2)])
        >>> [next(dev).tolist() for _ in range(3)]
        [[0.0, 0.0], [1.0, 1.0], [0.0, 0.0]]
    """
    if isinstance(loader, DataLoaderStateMixin):
        raise TypeError(
            "loader is one that accelerator.prepare returned: pass it as you made it. While a "
            "prepared one is read, Accelerate takes its end for the end of the training epoch"
        )
    batches = DevBatches(loader, lambda batch: send_to_device(batch, accelerator.device))
    batches.agree()
    accelerator.register_for_checkpointing(batches)
    return batches


def _plain(optimizer: Optimizer | Sequence[Optimizer] | None) -> Any:
    """The optimizers inside prepared ones."""
    if isinstance(optimizer, (list, tuple)):
        return [_plain(each) for each in optimizer]
    return optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer
