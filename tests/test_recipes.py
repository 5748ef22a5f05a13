"""The programs of the recipes do what their pages say."""

from __future__ import annotations

import pytest
import torch
from recipes import layer_decay, no_dev_set


def test_a_penalty_for_each_layer_is_learned_in_one_training() -> None:
    train, dev, test = layer_decay.digits(0)
    problem = layer_decay.Problem(train, dev)
    found = {}
    for name in ("no penalty", "one per layer, learned"):
        params, log_decay = layer_decay.METHODS[name](problem, 0)
        with torch.no_grad():
            found[name] = float(layer_decay.loss(params, test))
    # The recipe shows 1.54 and .34 for the mean over five seeds.
    assert found["one per layer, learned"] < 0.5 * found["no penalty"]
    by_layer = dict(zip(layer_decay.LAYERS, log_decay.tolist(), strict=True))
    assert by_layer["noise"] > by_layer["pixels"] + 2  # of logarithms: more than seven times


def table(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("| ") and "---" not in line]


def test_the_recipes_print_the_rows_of_their_pages(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(layer_decay, "STEPS", 3)
    monkeypatch.setattr(no_dev_set, "STEPS", 3)
    layer_decay.main(["--seeds", "2"])
    assert len(table(capsys.readouterr().out)) == 1 + len(layer_decay.METHODS)
    no_dev_set.main(["--seeds", "1"])
    rows = table(capsys.readouterr().out)
    assert len(rows) == 2 + 9 + 5 and not any("nan" in row for row in rows)
