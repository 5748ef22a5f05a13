"""Gradients of the loss on a batch that several processes share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cdr.common import Processes


@torch.no_grad()
def average(processes: Processes, model: nn.Module, loss: Tensor, rows: int) -> Tensor:
    """Make the gradients those of the mean loss over the rows of all processes.

    What each process holds counts by its rows, so that shares need not be equal. Dense gradients
    travel in one message. Of a sparse one, as of ``nn.Embedding(sparse=True)``, the rows travel
    that the processes have looked up, never the table. Buffers of floating-point numbers, such as
    running statistics, become their mean too.

    Args:
        processes: One alone leaves everything as it is.
        model: Its ``.grad`` are of the mean loss over the rows of this process.
        loss: The mean loss over the rows of this process, [].
        rows: How many rows this process has, at least 1.

    Returns:
        The mean loss over the rows of all processes, [].

    Raises:
        Stopped: Another process has failed.
    """
    if processes.size == 1:
        return loss
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    dense = [loss, *(grad for grad in grads if not grad.is_sparse), *buffers]
    count = loss.new_tensor([float(rows)])
    message = torch.cat([*(x.reshape(-1) * rows for x in dense), count])
    total = processes.total(message)
    means = torch.split(total[:-1] / total[-1], [x.numel() for x in dense])
    for x, mean in zip(dense[1:], means[1:], strict=True):
        x.copy_(mean.view_as(x))
    for parameter in model.parameters():
        if parameter.grad is not None and parameter.grad.is_sparse:
            share = float(rows) / total[-1]
            parameter.grad = _summed(processes, parameter.grad.coalesce(), share)
    return means[0].view_as(loss)


def _summed(processes: Processes, grad: Tensor, share: Tensor) -> Tensor:
    """The sum of sparse gradients [n, ...] of all processes, each times the share of its process.

    A process with another batch has looked up other rows.
    """
    indices = torch.cat(processes.rows_of_all(grad.indices()[0])).unsqueeze(0)
    values = torch.cat(processes.rows_of_all(grad.values() * share))
    return torch.sparse_coo_tensor(indices, values, grad.shape).coalesce()
