"""A small regression in float64, for the frameworks that train any module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import reweight

FEATURES, SAMPLES, DEV = 3, 32, 10


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def losses(model: Any, batch: Any) -> reweight.Losses:
    x, y = batch
    output = model(x).squeeze(-1)
    # The fixed part is an average that the user has made.
    return reweight.Losses((output - y).square(), fixed=0.1 * output.square().mean())


def outer_loss(model: Any, batch: Any) -> Tensor:
    return losses(model, batch).weighted.mean()


def data(seed: int, n: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, FEATURES, generator=generator, dtype=torch.float64)
    return TensorDataset(x, torch.where(torch.arange(n) % 2 == 0, x[:, 0], -x[:, 0]))


def train_loader(batch_size: int) -> Any:
    return DataLoader(data(1, SAMPLES), batch_size=batch_size)


def dev_loader() -> Any:
    return DataLoader(data(2, DEV), batch_size=4, shuffle=True)
