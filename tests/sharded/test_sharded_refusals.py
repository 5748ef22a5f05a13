"""Models that are spread over processes in other ways are refused, with what to do instead."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.tensor import parallel

import reweight
from _support.sharded import (
    Replicate,
    batch,
    fully_shard,
    fully_sharded,
    losses,
    mesh,
    net,
    outer_loss,
    sharded_by_rows,
)
from reweight import LossWeighter

distributed = torch.distributed


@pytest.fixture(autouse=True)
def process_group(tmp_path: Path) -> Iterator[None]:
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def wrap(model: nn.Module, weighter: nn.Module | None = None) -> reweight.Reweighted:
    weighter = LossWeighter().double() if weighter is None else weighter
    return reweight.wrap(model, weighter, losses, outer_loss)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("part", "style"),
    [
        ("head", parallel.RowwiseParallel()),
        ("body.0", parallel.ColwiseParallel()),
        ("table", parallel.ColwiseParallel()),
    ],
)
def test_tensor_parallel_layers_are_refused(part: str, style: Any) -> None:
    model = net()
    parallel.parallelize_module(model, mesh(), {part: style})
    with pytest.raises(TypeError, match=rf"{part}\.\w+ .* use fully_shard\(model\)"):
        wrap(model)


def test_tensor_parallel_layers_inside_of_fully_shard_are_refused() -> None:
    model = net()
    meshes = distributed.device_mesh.init_device_mesh("cpu", (1, 1), mesh_dim_names=("dp", "tp"))
    parallel.parallelize_module(model, meshes["tp"], {"head": parallel.RowwiseParallel()})
    fully_shard(model, mesh=meshes["dp"])
    with pytest.raises(TypeError, match=r"head\.\w+ of a Linear is sharded"):
        wrap(model)


def test_a_sharded_weighter_is_refused() -> None:
    weighter = LossWeighter().double()
    fully_shard(weighter, mesh=mesh())
    with pytest.raises(TypeError, match=r"mlp\.0\.weight is sharded .*weighter"):
        wrap(net(), weighter)


def test_rows_of_one_process_are_refused() -> None:
    rw = wrap(sharded_by_rows(net(), Replicate()))
    with pytest.raises(TypeError, match="row-sharded embedding tables and this process is alone"):
        rw.hypergradient(batch(0), batch(1))


def test_fsdp1_is_refused() -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = FullyShardedDataParallel(net(), device_id=torch.device("cpu"))
    with pytest.raises(TypeError, match=r"FSDP1.* Use fully_shard\(model\)"):
        wrap(model)


def test_zero_3_of_deepspeed_is_refused() -> None:
    model = net()
    model.head.weight.ds_id = 3  # type: ignore[assignment]  # as its engine marks parameters
    with pytest.raises(TypeError, match="weight of Linear is a parameter of DeepSpeed ZeRO-3"):
        wrap(model)


def test_tables_of_torchrec_are_refused() -> None:
    model = net()
    # Its classes are told by their module, so that it need not be installed.
    kind = type("ShardedEmbeddingBagCollection", (nn.Module,), {})
    kind.__module__ = "torchrec.distributed.embeddingbag"
    model.add_module("bags", kind())
    with pytest.raises(TypeError, match=r"ShardedEmbeddingBagCollection.*RowwiseParallel"):
        wrap(model)


def test_a_pipeline_is_refused() -> None:
    pipelining = pytest.importorskip("torch.distributed.pipelining")

    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x))  # type: ignore[no-any-return]

    spec = {"second": pipelining.SplitPoint.BEGINNING}
    pipe = pipelining.pipeline(Halves(), mb_args=(torch.zeros(2, 3),), split_spec=spec)
    with pytest.raises(TypeError, match=r"pipelining.* Use fully_shard\(model\)"):
        wrap(pipe)


def test_further_batches_are_refused_with_row_sharded_tables() -> None:
    rw = wrap(sharded_by_rows(net(), Replicate()))
    with pytest.raises(ValueError, match="batches= and row-sharded"):
        rw.hypergradient(batch(0), batch(1), batches=iter([batch(2)]))


def test_a_model_may_be_sharded_after_it_was_wrapped() -> None:
    """As long as no optimizer holds the parameters."""
    rw = wrap(net())
    fully_sharded(rw.model)  # type: ignore[arg-type]
    assert rw.hypergradient(batch(0), batch(1)).grads
