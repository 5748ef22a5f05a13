"""A training on the shares of two processes is that of one process, which can go on with it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.utils.data import TensorDataset

import reweight
from _support.processes import Processes, values
from reweight import PairLoader, ReorderReuseSampler

N, BATCH = 29, 4  # four pairs an epoch, the last of which has 5 samples: shares of 2 and 3
Batch = list[Tensor]


def losses(model: nn.Module, batch: Batch) -> Tensor:
    x, y = batch
    return (model(x).squeeze(-1) - y).square()


def dev_loss(model: nn.Module, batch: Batch) -> Tensor:
    return losses(model, batch).mean()


def average(model: nn.Module, count: int) -> None:
    """Average gradients over the processes, each by its number of samples."""
    total = torch.tensor(float(count), dtype=torch.float64)
    distributed.all_reduce(total)
    for p in model.parameters():
        assert p.grad is not None
        distributed.all_reduce(p.grad.mul_(count))
        p.grad.div_(total)


def train(rank: int, size: int, steps: int, state: dict[str, Any] | None) -> dict[str, Any]:
    """Make steps with each pair, from a state if there is one."""
    torch.manual_seed(0)
    x, noise = torch.randn(2, N, 3, dtype=torch.float64)
    dataset = TensorDataset(x, x.sum(-1) + noise[:, 0])
    model, weighter = nn.Linear(3, 1).double(), reweight.LossWeighter().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    outer_optimizer = torch.optim.SGD(weighter.parameters(), lr=1e-3)
    rw = reweight.wrap(model, weighter, losses, dev_loss, optimizer)
    sampler = ReorderReuseSampler(N, BATCH * 2 // size, seed=1, num_replicas=size, rank=rank)
    parts = {"model": model, "weighter": weighter, "loader": PairLoader(dataset, sampler)}
    for name, part in parts.items():
        if state is not None:
            part.load_state_dict(state[name])
    while steps:
        for batch, dev_batch in parts["loader"]:
            optimizer.zero_grad()
            rw.loss(batch).backward()
            if size > 1:
                average(model, len(batch[1]))
            optimizer.step()
            outer_optimizer.zero_grad()
            rw.outer_backward(batch, dev_batch)
            outer_optimizer.step()
            steps -= 1
            if not steps:
                break
    return {name: part.state_dict() for name, part in parts.items()}


@pytest.mark.slow
def test_two_processes_train_as_one_and_one_goes_on(two: Processes) -> None:
    first, second = values(two.run(train, 6, None))
    assert first["loader"] == second["loader"]
    stopped, whole = train(0, 1, 6, None), train(0, 1, 11, None)
    resumed = train(0, 1, 5, first)
    for found, expected in ((first, stopped), (second, stopped), (resumed, whole)):
        for name in ("model", "weighter"):
            for key, value in expected[name].items():
                # Sums in another order, through a dozen steps of well-conditioned problems.
                torch.testing.assert_close(found[name][key], value, rtol=1e-10, atol=1e-12)
    assert resumed["loader"]["position"] == whole["loader"]["position"] == 11 % 4
