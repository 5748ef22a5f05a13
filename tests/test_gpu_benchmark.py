"""The GPU benchmark: a refusal in words without one, and everything else on a CPU."""

from __future__ import annotations

import sys

import pytest
import torch

from benchmarks import gpu


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
