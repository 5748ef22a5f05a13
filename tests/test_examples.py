"""The small examples run, and show what they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import data_parallel
import noisy_labels
import pytest
from recipes import retrain

from reweight.valuation import SampleValues


@pytest.mark.slow
def test_noisy_labels_learns_which_labels_to_believe(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    noisy_labels.main(["--plot", str(tmp_path / "steps.png")])
    assert (tmp_path / "steps.png").stat().st_size > 10_000
    shown = capsys.readouterr().out
    plain, learned = (float(x) for x in re.findall(r"accuracy (\d\.\d+)", shown))
    right, wrong = (float(x) for x in re.findall(r"labels (\d\.\d+)", shown))
    assert learned > plain + 0.1 and learned > 0.97
    assert right > 1.5 and wrong < 0.1


@pytest.mark.slow
def test_two_processes_print_the_table_of_one(capsys: pytest.CaptureFixture[str]) -> None:
    data_parallel.main(["--epochs", "3"])
    one = [float(x) for x in re.findall(r" (\d\.\d+)$", capsys.readouterr().out, re.MULTILINE)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*torchrun, "--nproc-per-node", "2", data_parallel.__file__, "--epochs", "3"]
    quiet = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, env=quiet, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    two = [float(x) for x in re.findall(r" (\d\.\d+)$", done.stdout, re.MULTILINE)]
    assert len(one) == len(two) == 3 and one[1] > 1.5 * one[2]
    # The last batch of an epoch is ragged, and DDP weighs the halves of it alike.
    assert two == pytest.approx(one, abs=0.01)


@pytest.mark.slow
def test_retrain_compares_all_ways_and_saves_and_draws(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrain, "STEPS", 25)  # an epoch takes 20
    monkeypatch.setattr(retrain, "WARMUP", 20)
    retrain.main(["--seeds", "2", "--save", f"{tmp_path}/v.csv", "--plot", f"{tmp_path}/c.png"])
    assert (tmp_path / "c.png").stat().st_size > 10_000
    assert len(SampleValues.load(tmp_path / "v.csv")) == retrain.NUM_TRAIN
    shown = capsys.readouterr().out
    # Seven ways with their mean and error; six shares in three ways, by influence and by weight.
    assert len(re.findall(r"^[a-z][\w ,()]+\d\.\d{3} ± \d\.\d{3}", shown, re.MULTILINE)) == 7
    assert len(re.findall(r"^ *\d+ % +\d+( +\d\.\d{3} ± \d\.\d{3}){3}", shown, re.MULTILINE)) == 12


@pytest.mark.slow
def test_retrain_finds_wrong_labels_by_weight_and_by_influence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retrain, "STEPS", 300)
    task = retrain.make_task(0)
    _, values = retrain.search(task, 0)
    wrong = task.wrong.numpy()
    assert values.weights[~wrong].mean() > 3 * values.weights[wrong].mean()
    assert wrong[values.worst_first()[: int(wrong.sum())]].mean() > 0.7
    retrained = retrain.accuracy(retrain.retrain(task, retrain.ALL, 0, values), task.test)
    assert retrained > retrain.accuracy(retrain.retrain(task, retrain.ALL, 0), task.test)
