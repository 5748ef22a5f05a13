"""The GPU benchmark: a refusal in words without one, and everything else on a CPU."""

from __future__ import annotations

import sys

import pytest
import torch

from benchmarks import gpu, outer_steps


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit, match="2"):
        gpu.main()
    assert "there is no CUDA device" in capsys.readouterr().err


def test_the_data_have_the_size_that_was_asked_for() -> None:
    size = gpu.Size(users=40, source_items=90, target_items=50)
    data = gpu.make_data(size)
    assert data.num_users == 40
    assert data.source_items.num == 90 and data.target_items.num == 50
    assert int(data.source_offsets.diff().min()) >= 5, "no source behaviour comes too late"
    # The last two target behaviours of each user are for testing and validation.
    assert len(data.test) == 40 and int(torch.bincount(data.train.user).min()) >= 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", gpu.PRECISIONS)
@pytest.mark.parametrize("variant", gpu.VARIANTS)
@pytest.mark.filterwarnings("ignore:.*hypergradient")
def test_every_row_runs_as_a_cuda_graph(variant: str, precision: str) -> None:
    data = gpu.make_data(gpu.Size(users=40, source_items=90, target_items=50)).to("cuda")
    assert gpu.row(variant, data, 16, precision, graph=True)["inner_ms"] > 0.0


@pytest.mark.parametrize("variant", gpu.VARIANTS)
@pytest.mark.filterwarnings("ignore:.*hypergradient")  # the paper's step size
def test_a_row_has_every_time(monkeypatch: pytest.MonkeyPatch, variant: str) -> None:
    monkeypatch.setattr(gpu, "STEPS", 6)
    monkeypatch.setattr(gpu, "OUTER_STEPS", 1)
    monkeypatch.setattr(gpu, "REPEATS", 1)
    data = gpu.make_data(gpu.Size(users=40, source_items=90, target_items=50))
    before = torch.get_float32_matmul_precision()
    row = gpu.row(variant, data, 16, "tf32", graph=False)
    assert torch.get_float32_matmul_precision() == before
    times = {"inner_ms", "epoch_s"} | ({"outer_ms"} if variant == "ours" else set())
    assert set(row) == {"variant", "precision", "graph", *times}
    assert all(row[name] > 0.0 for name in times)


@pytest.mark.parametrize("variant", gpu.VARIANTS)
@pytest.mark.filterwarnings("ignore:.*hypergradient")
def test_one_seed_and_several_are_timed(monkeypatch: pytest.MonkeyPatch, variant: str) -> None:
    monkeypatch.setattr(gpu, "REPEATS", 1)
    data = gpu.make_data(gpu.Size(users=40, source_items=90, target_items=50))
    assert all(seconds > 0.0 for seconds in gpu.at_once(variant, data, 16).values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["GPT-2 small", "GPT-2 small, LoRA", "ResNet-18"])
@pytest.mark.filterwarnings("ignore")  # of random weights
def test_outer_steps_of_large_shapes_are_timed(name: str) -> None:
    cpu = torch.device("cpu")
    workload = outer_steps.workloads(cpu, small=True)[name]()
    chosen = outer_steps.strategies(compiled=False)
    rows = outer_steps.measured(workload, chosen, cpu, seconds=0.0, rounds=1)
    assert [row["step"] for row in rows] == ["forward + backward", *chosen]
    assert rows[0]["passes"] == 1.0 and all(row["ms"] > 0.0 for row in rows)
    assert len({len(line) for line in outer_steps.table(name, rows).splitlines()}) == 1, "aligned"
    modes = {n: s.compile for n, s in outer_steps.strategies(compiled=True).items()}
    assert sum(modes.values()) == len(chosen)


def test_the_shape_is_that_of_resnet_18() -> None:
    convolutions = [m for m in outer_steps.resnet(64).modules() if isinstance(m, torch.nn.Conv2d)]
    assert sum(m.kernel_size == (3, 3) for m in convolutions) == 17
    # As many as in ResNet-18, but for the first layer, which has windows of 7 by 7 there.
    assert sum(m.weight.numel() for m in convolutions) == 11_166_912 - 9_408 + 1_728
