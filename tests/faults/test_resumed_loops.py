"""A training that goes on from a RunState is the one that was not interrupted, bit for bit."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from _support.resumed_loop import CUT, STEPS, VARIANTS, Loop, Variant, load, save

# The others are marked long.
QUICK = {
    "auto",
    "differences",
    "plain loaders",
    "drawn loaders",
    "micro-batches",
    "pairs, 2 workers",
}
FORMS = ("folder", "torch", "safetensors")


def in_full(name: str) -> Any:
    return pytest.param(name, marks=pytest.mark.long)


def whole(variant: Variant) -> str:
    loop = Loop(variant)
    loop.train(STEPS)
    return loop.result()


def in_new_objects(variant: Variant, folder: Path, form: str, cut: int = CUT) -> str:
    """The result of a training that was stopped, and gone on with by other objects."""
    stopped = Loop(variant)
    stopped.train(cut)
    save(stopped.state(), folder, form)
    del stopped
    resumed = Loop(variant)
    # Whatever a new process does first.
    torch.rand(7), random.random(), np.random.rand(3)
    resumed.load(load(folder, form))
    resumed.train(STEPS)
    return resumed.result()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", [v if v in QUICK else in_full(v) for v in VARIANTS])
def test_a_loop_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    form = "torch" if len(name) % 2 else "folder"
    assert in_new_objects(VARIANTS[name], tmp_path, form) == whole(VARIANTS[name])


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", VARIANTS)
def test_a_loop_goes_on_bit_for_bit_from_any_step(name: str, tmp_path: Path) -> None:
    expected = whole(VARIANTS[name])
    for cut in range(1, STEPS):
        assert in_new_objects(VARIANTS[name], tmp_path, "folder", cut) == expected


def test_a_state_goes_through_safetensors(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    variant = VARIANTS["micro-batches"]
    assert in_new_objects(variant, tmp_path, "safetensors") == whole(variant)


def killed_and_resumed(name: str, form: str, folder: Path, seed: int) -> str:
    """What a process prints that goes on where another one was killed, at a random moment."""
    tests = str(Path(__file__).parents[1])
    paths = [tests, *filter(None, [os.environ.get("PYTHONPATH")])]
    how: dict[str, Any] = {
        "env": {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONWARNINGS": "ignore"},
        "text": True,
    }
    command = [sys.executable, "-m", "_support.resumed_loop", name, form, str(folder)]
    chosen = random.Random(seed)
    steps = chosen.randint(1, STEPS - 2)
    with subprocess.Popen(command, stdout=subprocess.PIPE, **how) as first:
        assert first.stdout is not None
        for line in first.stdout:
            if line.strip() == str(steps):
                break
        time.sleep(chosen.uniform(0.0, 0.02))  # in a pass, in an outer step or in a save
        first.kill()
    second = subprocess.run(command, check=True, capture_output=True, **how)
    begun, *_, result = second.stdout.splitlines()
    assert begun.startswith("resumed ") and int(begun.split()[1]) >= steps
    return str(result)


@pytest.mark.slow
def test_a_process_that_was_killed_is_gone_on_with_by_another(tmp_path: Path) -> None:
    name = "micro-batches"
    assert killed_and_resumed(name, "folder", tmp_path, 0) == whole(VARIANTS[name])


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", VARIANTS)
def test_every_loop_goes_on_after_a_kill(name: str, form: str, tmp_path: Path) -> None:
    if form == "safetensors":
        pytest.importorskip("safetensors")
    seed = len(name) + 10 * FORMS.index(form)
    assert killed_and_resumed(name, form, tmp_path, seed) == whole(VARIANTS[name])
