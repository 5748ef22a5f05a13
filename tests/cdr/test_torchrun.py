"""The command under torchrun: one result of all processes, written once, and one end."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch

from _support.processes import Processes, values
from cdr.common import ALONE
from cdr.run_biao import main
from cdr.runs import processes as starting
from cdr.runs.processes import launched
from cdr.training.loop import Training

BRIEF = (
    *("--source", "books", "--target", "toys", "--model", "twotower"),
    *("--variants", "S", "base", "ours", "search", "retrain", "--search.epochs", "1"),
    *("--inner.epochs", "1", "--inner.batch-size", "64", "--outer.interval", "2"),
)


def command(rank: int, size: int, arguments: list[str], failing: bool = False) -> list[Any]:
    """The exit code, and what is printed."""
    out, err, end_epoch = io.StringIO(), io.StringIO(), Training.end_epoch

    def fail(*told: Any) -> None:
        raise OSError("the disk is full")

    try:
        if failing and rank == 1:
            Training.end_epoch = fail  # type: ignore[method-assign]
        with redirect_stdout(out), redirect_stderr(err):
            code = main(arguments)
    finally:
        Training.end_epoch = end_epoch  # type: ignore[method-assign]
    return [code, out.getvalue(), err.getvalue()]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    pool = Processes(2, tmp_path_factory.mktemp("pool"))
    yield pool
    pool.close()


@pytest.mark.slow
def test_the_first_process_writes_and_prints_the_table_of_one(
    pool: Processes, ratings: Path, tmp_path: Path
) -> None:
    told = ["--data", str(ratings), *BRIEF, "--checkpoints", str(tmp_path / "kept")]
    first, second = values(pool.run(command, [*told, "--out", str(tmp_path / "two")]))
    assert first[0] == second[0] == 0 and second[1] == ""
    assert "everything is in" in first[1]
    assert sorted(os.listdir(tmp_path)) == ["kept", "two"]
    assert (tmp_path / "kept" / "retrain-seed0" / "__1_0.distcp").exists()
    alone = command(0, 1, ["--data", str(ratings), *BRIEF, "--out", str(tmp_path / "one")])
    assert alone[0] == 0
    assert set(os.listdir(tmp_path / "two")) == set(os.listdir(tmp_path / "one"))
    one, two = (
        json.loads((tmp_path / name / "metrics.json").read_text())["table"]
        for name in ("one", "two")
    )
    for variant in one:
        # In float32 rounding differs. It may swap a few of some 600 pairs that the AUC counts.
        assert two[variant]["auc"] == pytest.approx(one[variant]["auc"], abs=0.005)


@pytest.mark.slow
def test_what_fails_on_one_process_is_told_by_all(
    pool: Processes, ratings: Path, tmp_path: Path
) -> None:
    told = ["--data", str(ratings), *BRIEF, "--out", str(tmp_path / "two")]
    first, second = values(pool.run(command, told, True))
    assert first[0] == second[0] == 2
    assert "process 1 of 2: the disk is full" in first[2] and "the disk is full" in second[2]
    assert not os.listdir(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("option", [["--jobs", "2"], ["--stack-seeds"]])
def test_trainings_side_by_side_do_not_go_with_it(
    pool: Processes, ratings: Path, tmp_path: Path, option: list[str]
) -> None:
    told = ["--data", str(ratings), *BRIEF, *option, "--out", str(tmp_path / "two")]
    for code, _, err in values(pool.run(command, told)):
        assert code == 2 and option[0] in err and "torchrun" in err


def test_without_torchrun_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with launched("cpu") as (processes, device):
        assert processes is ALONE and device == "cpu"
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with launched("cpu") as (processes, _):
        assert processes is ALONE


@pytest.mark.parametrize(
    ("device", "told"),
    [("cuda:1", "--device cuda:1.*CUDA_VISIBLE_DEVICES"), ("cuda", "2 processes.* 1 GPUs")],
)
def test_each_process_needs_a_gpu_of_its_own(
    monkeypatch: pytest.MonkeyPatch, device: str, told: str
) -> None:
    for name, value in {"RANK": 1, "WORLD_SIZE": 2, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(starting, "usable_device", lambda name: name)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match=told), launched(device):
        pass
