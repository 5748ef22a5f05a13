"""Trainings of two processes learn what one process with the samples of both learns."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from _support.parallel.launch import two_processes
from reweight.integrations._processes import data_parallel

# Sums in another order, magnified by Adam's division by small gradients.
EXACT = 1e-9


def trained(framework: str, folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What one process found, and what each of two found."""
    for name in ("one", "two"):
        (folder / name).mkdir()
    two = two_processes(f"with_{framework}", folder / "two")
    program = import_module(f"_support.parallel.with_{framework}")
    return program.run(folder / "one", 0, 1), two


def assert_is_one(one: dict[str, Any], two: list[dict[str, Any]], *names: str) -> None:
    for name in names:
        assert torch.equal(two[0][name], two[1][name]), name
        torch.testing.assert_close(two[0][name], one[name], rtol=EXACT, atol=EXACT)


@pytest.mark.slow
def test_accelerate(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    from accelerate.state import AcceleratorState, GradientState, PartialState

    try:
        one, two = trained("accelerate", tmp_path)
    finally:
        for shared in (AcceleratorState, GradientState, PartialState):
            shared._reset_state()
    assert_is_one(one, two, "compared", "alone", "resumed")
    assert torch.equal(two[1]["resumed"], two[1]["compared"])


@pytest.mark.slow
def test_lightning(tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    one, two = trained("lightning", tmp_path)
    assert_is_one(one, two, "compared", "alone", "resumed", "mean")
    assert torch.equal(two[1]["resumed"], two[1]["compared"])
    rows = (tmp_path / "two/whole/logs/version_0/metrics.csv").read_text().splitlines()
    assert len(rows) == 1 + 8  # one for each optimizer step, of the first process only


@pytest.mark.slow
def test_transformers(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    one, two = trained("transformers", tmp_path)
    assert_is_one(one, two, "sources", "resumed", "tokens", "sequences", "known")
    assert_is_one(one, two, "losses")
    assert torch.equal(two[1]["resumed"], two[1]["sources"])
    assert [each["saved"] for each in two] == [2, 0]  # the first process writes checkpoints


def test_processes_without_data_parallelism_are_refused() -> None:
    with pytest.raises(NotImplementedError, match="2 processes train this model as a Linear.*ddp"):
        data_parallel(nn.Linear(1, 1), 2)
    assert data_parallel(nn.Linear(1, 1), 1) is None
