"""A small model with a table, and the ways to put it in shards."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor.parallel import RowwiseParallel, parallelize_module

import reweight
from _support.processes import Processes
from _support.processes import values as answers_of
from reweight import ImplicitHypergradient, LossWeighter, Reweighted

try:
    from torch.distributed.fsdp import (
        MixedPrecisionPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )
    from torch.distributed.tensor import Replicate, Shard
except ImportError:  # their places before torch 2.6
    from torch.distributed._composable.fsdp import (
        MixedPrecisionPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )
    from torch.distributed._tensor import Replicate, Shard

__all__ = ["MixedPrecisionPolicy", "Replicate", "Shard", "register_fsdp_forward_method"]

Batch = tuple[Tensor, Tensor, Tensor]
ROWS = 29


class Net(nn.Module):
    """A table with a padding row, and layers whose sizes two processes do not divide."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(ROWS, 3, padding_idx=2)
        self.body = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4))
        self.head = nn.Linear(4, 1)

    def forward(self, ids: Tensor, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.body(self.table(ids).sum(1) * x)))
        return out.squeeze(-1)


def net() -> Net:
    torch.manual_seed(0)
    return Net().double()


def losses(model: nn.Module, batch: Batch) -> Tensor:
    ids, x, y = batch
    out: Tensor = (model(ids, x) - y).square()
    return out


def outer_loss(model: nn.Module, batch: Batch) -> Tensor:
    return losses(model, batch).mean()


def batch(seed: int, size: int = 8) -> Batch:
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, ROWS, (size, 4), generator=g)
    x = torch.randn(size, 3, dtype=torch.float64, generator=g)
    return ids, x, torch.randn(size, dtype=torch.float64, generator=g)


def own(batch: Any, *, ragged: bool = False) -> Any:
    """This process's part of the samples, which has two more on the first one where ragged."""
    rank, size, n = distributed.get_rank(), distributed.get_world_size(), len(batch[0])
    ends = [n * (i + 1) // size + (1 if ragged and i + 1 < size else 0) for i in range(size)]
    return tuple(x[([0, *ends])[rank] : ends[rank]] for x in batch)


def mesh() -> DeviceMesh:
    return init_device_mesh("cpu", (distributed.get_world_size(),))


def fully_sharded(model: Net, **options: Any) -> Net:
    """FSDP2, on a layer inside and on the whole."""
    for part in (model.body, model):
        fully_shard(part, mesh=mesh(), **options)
    return model


def sharded_by_rows(model: Net, layout: Any) -> Net:
    """The table, with one layout for ids and embeddings."""
    style = RowwiseParallel(input_layouts=layout, output_layouts=layout)
    parallelize_module(model, mesh(), {"table": style})
    return model


def weighter() -> LossWeighter:
    torch.manual_seed(1)
    weighter = LossWeighter(4).double()
    nn.init.normal_(weighter.mlp[-1].weight)
    return weighter


def adam(model: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam(model.parameters(), lr=0.05, weight_decay=0.01)


def wrapped(model: nn.Module, strategy: ImplicitHypergradient, **options: Any) -> Reweighted:
    optimizer = adam(model)
    return reweight.wrap(model, weighter(), losses, outer_loss, optimizer, strategy, **options)


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    def state() -> list[Any]:
        return [
            [dict(part._parameters), list(vars(part)), part.training]
            + [list(x.items()) for x in (part._forward_hooks, part._forward_pre_hooks)]
            for part in model.modules()
        ]

    def values() -> list[Tensor]:
        return [p.to_local().clone() for p in model.parameters() if hasattr(p, "to_local")]

    before, numbers = state(), values()
    yield
    assert before == state()
    assert all(map(torch.equal, numbers, values()))
    assert all(p.grad is None for p in model.parameters())


def second(model: nn.Module, batch: Batch) -> tuple[Tensor, ...]:
    """The derivative of a function of the gradient."""
    params = [p for p in model.parameters() if p.requires_grad]
    grads = torch.autograd.grad(outer_loss(model, batch), params, create_graph=True)
    return torch.autograd.grad(sum(g.square().sum() for g in grads), params)


def raised(function: Callable[[], Any], kind: type[Exception] = Exception) -> str:
    """What a call raises."""
    try:
        function()
    except kind as error:
        return str(error)
    return ""


def run_on(processes: Processes, check: Callable[[], None]) -> None:
    """Run a function without arguments in every process, and raise what goes wrong in it."""
    answers_of(processes.run(_call, check))


def _call(rank: int, size: int, check: Callable[[], None]) -> None:
    with warnings.catch_warnings():
        # FSDP2 warns of views, and DTensor of calls that it makes itself.
        warnings.simplefilter("ignore")
        check()
