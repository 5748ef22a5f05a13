"""The examples of Lightning, Accelerate and TensorBoard run, and show what their pages say."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest


def accuracies(shown: str) -> list[float]:
    return [float(x) for x in re.findall(r"accuracy (\d\.\d+)", shown)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lightning", "accelerate"])
def test_learned_weights_are_better_than_training_on_everything(name: str, capsys: Any) -> None:
    pytest.importorskip(name)
    import_module(f"integrations.{name}_loop").main([])
    shown = capsys.readouterr().out
    plain, together, learned, again = accuracies(shown)
    right, wrong = (float(x) for x in re.findall(r"labels (\d\.\d+)", shown))
    assert learned > plain and again > together
    assert right > 1.0 and wrong < 0.2


def test_the_example_of_tensorboard_writes_every_outer_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    example = import_module("integrations.logging_loop")
    monkeypatch.setattr(example, "EPOCHS", 6)
    example.main(["--logdir", str(tmp_path)])
    assert len(accuracies(capsys.readouterr().out)) == 3
    events = EventAccumulator(str(tmp_path), {"histograms": 0})  # all of them
    events.Reload()
    steps = [event.step for event in events.Scalars("reweight/weight_mean")]
    assert steps == list(range(5, 106, 5))  # 6 epochs of 18 batches
    assert len(events.Histograms("reweight/weights")) == len(steps)
