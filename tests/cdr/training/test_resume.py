"""A training that was stopped after any of its steps goes on bit for bit as if it had not been."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scenarios import brief

from cdr.common import map_tensors, tensors_in
from cdr.data import CrossDomainData
from cdr.training import saves as saving
from cdr.training.epochs import train
from cdr.training.loop import Training
from cdr.training.result import Result
from cdr.training.saves import Saves
from cdr.training.side_by_side import train_side_by_side

# Every kind of state: plain, tables by rows, the perceptron with weights made ahead in groups that
# an outer step ends, rows held out, a second head, dropout and batch statistics.
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "base": ("base", "twotower", {"inner.lazy_tables": True}),
    "ours": ("ours", "conet", {"outer.interval": 3}),
    "ahead": ("ours", "minet", {"outer.interval": 5, "outer.weights_ahead": 2}),
    "search": ("search", "twotower", {"search.epochs": 2, "outer.weights_ahead": 4}),
    "dev head": ("ours", "conet", {"model.dev_head": True, "outer.dev_head_steps": 2}),
    "dropout": ("ours", "dasl", {"model.dropout": 0.1, "outer.weights_ahead": 3}),
    "loss": ("loss", "twotower", {}),
}


class Stopped(Exception):
    pass


def stop_after(steps: int) -> Callable[..., None]:
    left = [steps]

    def on_step(*where: object) -> None:
        left[0] -= 1
        if not left[0]:
            raise Stopped

    return on_step


def same(one: Result, other: Result) -> bool:
    numbers = [
        (tensors_in(one.state), tensors_in(other.state)),
        ([one.test.probability], [other.test.probability]),
        ([one.weights], [other.weights]) if one.weights is not None else ([], []),
    ]
    # The library measures the residual of some outer steps only, and always in the first of a
    # process: that decides what is told of the steps, not what they do.
    outer = [
        [{k: v for k, v in record.items() if k != "relative_residual"} for record in each.outer]
        for each in (one, other)
    ]
    return (
        all(np.array_equal(a, b) for x, y in numbers for a, b in zip(x, y, strict=True))
        and repr(one.history) == repr(other.history)
        and repr(outer[0]) == repr(outer[1])
    )


@pytest.fixture
def in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps states without a disk, in the time that a copy takes."""
    kept: dict[Path, Any] = {}

    def save(state: Any, folder: Path, **told: Any) -> None:
        kept[folder] = map_tensors(torch.clone, copy.deepcopy(state))

    def load(folder: Path, **told: Any) -> Any:
        if folder not in kept:
            raise FileNotFoundError(folder)
        return map_tensors(torch.clone, copy.deepcopy(kept[folder]))

    monkeypatch.setattr(saving.reweight.checkpoint, "save", save)
    monkeypatch.setattr(saving.reweight.checkpoint, "load", load)
    monkeypatch.setattr(saving, "_LEAST_BETWEEN", 0)


@pytest.mark.slow
@pytest.mark.usefixtures("in_memory")
@pytest.mark.parametrize("case", CASES)
def test_it_goes_on_bit_for_bit(case: str, tiny: CrossDomainData, tmp_path: Path) -> None:
    variant, model, changes = CASES[case]
    options = brief(model).changed({"inner.epochs": 2, "inner.batch_size": 30} | changes)
    whole = train(variant, tiny, options, 3)
    kept = Saves(tmp_path / "states" / "state", seconds=0.0)
    # From one stop to the next; 9 steps an epoch (8 of a search), so that some stop at its ends.
    for steps in (2, 5, 2, 4, 1, 3):
        torch.rand(3)  # what others draw meanwhile
        with pytest.raises(Stopped):
            train(variant, tiny, options, 3, saves=kept, on_step=stop_after(steps))
    assert same(whole, train(variant, tiny, options, 3, saves=kept))


@pytest.mark.usefixtures("in_memory")
@pytest.mark.parametrize("variant", ["base", pytest.param("ours", marks=pytest.mark.slow)])
def test_seeds_side_by_side_go_on_bit_for_bit(
    variant: str, tiny: CrossDomainData, tmp_path: Path
) -> None:
    changes = {"inner.epochs": 6, "inner.patience": 1, "inner.batch_size": 60, "inner.lr": 1e-2}
    options, seeds = brief("conet").changed(changes), (3, 1, 2)
    places: list[tuple[int, int]] = []

    def on_step(epoch: int, step: int, steps: int, best: float) -> None:
        places.append((epoch, step))

    whole = train_side_by_side(variant, tiny, options, seeds, on_step=on_step)
    lengths, steps = [len(result.history) for result in whole], places.copy()
    assert len(set(lengths)) > 1, "some should leave the others"
    kept = Saves(tmp_path / "states" / "state", seconds=0.0)
    # Of 5 steps an epoch: in the middle of one, at its end, and where some seeds have left. The
    # step that is stopped in is taken again.
    for num in (3, 4, 5, 6, 2):
        with pytest.raises(Stopped):
            train_side_by_side(variant, tiny, options, seeds, saves=kept, on_step=stop_after(num))
    places.clear()
    found = train_side_by_side(variant, tiny, options, seeds, saves=kept, on_step=on_step)
    assert all(same(one, other) for one, other in zip(whole, found, strict=True))
    assert places == steps[15:]
    # Nothing goes on from a state of other seeds.
    alone = train_side_by_side(variant, tiny, options, (3, 1), saves=kept)
    assert [len(result.history) for result in alone] == lengths[:2]


def test_a_state_is_taken_where_no_batch_is_made_ahead(tiny: CrossDomainData) -> None:
    changes = {"outer.interval": 5, "outer.weights_ahead": 5, "inner.batch_size": 20}
    options = brief("minet").changed(changes)
    training, found = Training("ours", tiny, options, 0), []
    training.run_epoch(lambda *where: None, lambda: found.append(training.resting))
    assert found[:10] == [False, False, False, False, True] * 2


def test_seconds_lie_between_two_states(
    tiny: CrossDomainData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, saved = [0.0], []
    monkeypatch.setattr(saving.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(saving.reweight.checkpoint, "save", lambda *a, **k: saved.append(clock[0]))

    def on_step(*where: object) -> None:
        clock[0] += 1.0

    options = brief("twotower").changed({"inner.epochs": 3, "inner.batch_size": 30})
    train(
        "S", tiny, options, 0, saves=Saves(tmp_path / "a" / "state", seconds=4.0), on_step=on_step
    )
    assert saved == [4.0, 8.0, 12.0, 16.0, 20.0, 24.0]
    saved.clear(), clock.clear(), clock.append(0.0)
    train("S", tiny, options, 0, saves=Saves(tmp_path / "b", required=True), on_step=on_step)
    assert saved == [9.0, 18.0, 27.0]


def test_states_that_cannot_be_kept_or_read_do_not_cost_the_training(
    tiny: CrossDomainData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    options = brief("twotower").changed({"inner.epochs": 2, "inner.batch_size": 30})
    whole, kept = train("S", tiny, options, 3), Saves(tmp_path / "states" / "state", seconds=0.0)

    def full(*arguments: Any, **told: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "cdr"):
        patch.setattr(saving.reweight.checkpoint, "save", full)
        assert same(whole, train("S", tiny, options, 3, saves=kept))
        assert "No space left" in caplog.text and str(kept.folder) in caplog.text
        with pytest.raises(OSError, match="No space"):
            train("S", tiny, options, 3, saves=Saves(tmp_path / "asked", required=True))
    with pytest.raises(Stopped):
        train("S", tiny, options, 3, saves=kept, on_step=stop_after(5))
    path = next(kept.folder.glob("*.distcp"))
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    caplog.clear()
    assert same(whole, train("S", tiny, options, 3, saves=kept))
    assert "cannot go on from" in caplog.text and "distcp" in caplog.text


def test_states_of_another_command_are_left_to_it(tiny: CrossDomainData, tmp_path: Path) -> None:
    options = brief("twotower").changed({"inner.epochs": 2, "inner.batch_size": 30})
    kept = Saves(tmp_path / "states" / "state", seconds=0.0)
    with kept.held() as taken:
        assert taken
        train("S", tiny, options, 3, saves=kept)
        assert os.listdir(kept.folder.parent) == []
    with pytest.raises(Stopped):
        train("S", tiny, options, 3, saves=kept, on_step=stop_after(5))
    assert os.listdir(kept.folder.parent) == ["state"]


def test_it_goes_on_from_a_disk(tiny: CrossDomainData, tmp_path: Path) -> None:
    options = brief("conet").changed({"inner.epochs": 1, "inner.batch_size": 30})
    whole, kept = train("ours", tiny, options, 3), Saves(tmp_path / "states" / "state", seconds=0.0)
    with pytest.raises(Stopped):
        train("ours", tiny, options, 3, saves=kept, on_step=stop_after(5))
    assert same(whole, train("ours", tiny, options, 3, saves=kept))
    kept.remove()
    assert os.listdir(tmp_path) == []


@pytest.mark.usefixtures("in_memory")
def test_a_training_begun_again_goes_on_too(
    tiny: CrossDomainData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = brief("twotower").changed({"inner.epochs": 2, "inner.batch_size": 30})
    # Only a training with its second initialization tells rows apart.
    monkeypatch.setattr(Training, "collapsed", property(lambda self: not self._restarted))
    whole, kept = train("S", tiny, options, 3), Saves(tmp_path / "states" / "state", seconds=0.0)
    for steps in (4, 20, 3):  # 18 steps of the first, and some of the second
        with pytest.raises(Stopped):
            train("S", tiny, options, 3, saves=kept, on_step=stop_after(steps))
    found = train("S", tiny, options, 3, saves=kept)
    assert found.restarted and same(whole, found)
