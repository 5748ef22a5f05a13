"""Trainings side by side: the same results as one after another, and a clean end."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cdr.options import DEFAULT, Options
from cdr.runner import Source, Task, run
from cdr.training import Result

GENERATED = Source(
    "g1", (("num_users", 60), ("num_source_items", 200), ("num_target_items", 100)), seeded=True
)
BRIEF = replace(
    DEFAULT,
    inner=replace(DEFAULT.inner, epochs=2, batch_size=64),
    outer=replace(DEFAULT.outer, interval=2),
)


def tasks(source: Source = GENERATED, options: Options = BRIEF) -> list[Task]:
    return [
        Task(variant, seed, source, options, "conet", "cpu")
        for seed in (0, 1)
        for variant in ("base", "ours")
    ]


def test_tasks_are_done_in_order_in_this_process() -> None:
    told: list[str] = []
    assert [task for task, _ in run(tasks(), 1, told.append)] == tasks()
    assert told[0] == "base seed 0: epoch 1.0"
    assert told[-1].startswith("ours seed 1: epoch 2.0, valid AUC 0.")
    # With "10/10 |██████████| 1:00:02<1:00:18, " in front, still below 80 columns.
    assert max(map(len, told)) <= 42


def test_generated_data_are_drawn_anew_for_each_seed(ratings: Path) -> None:
    assert not torch.equal(GENERATED.load(0).train.item, GENERATED.load(1).train.item)
    source = Source(str(ratings), (("source", "books"), ("target", "toys")))
    assert source.load(0) is source.load(1)


def by_task(found: list[tuple[Task, Result]]) -> dict[Task, Result]:
    return dict(found)


@pytest.mark.slow
def test_two_at_a_time_give_the_same_results() -> None:
    told: list[str] = []
    alone = by_task(list(run(tasks(), 1, lambda text: None)))
    together = by_task(list(run(tasks(), 2, told.append)))
    assert together.keys() == alone.keys() == set(tasks())
    for task, result in alone.items():
        other = together[task]
        assert np.array_equal(result.test.probability, other.test.probability)
        assert [r["auc"] for r in result.history] == [r["auc"] for r in other.history]
        if task.variant == "ours":
            assert np.array_equal(result.weights, other.weights)
    assert any(text.startswith("ours seed 1") for text in told)


@pytest.mark.slow
def test_an_error_in_one_training_ends_the_others() -> None:
    endless = replace(BRIEF, inner=replace(BRIEF.inner, epochs=100_000, patience=100_000))
    broken = replace(endless, inner=replace(endless.inner, lr=1e12))
    both = [replace(tasks()[0], options=endless), replace(tasks()[1], options=broken)]
    with pytest.raises(ValueError, match=r"ours \(seed 0\).*--inner\.lr"):
        list(run(both, 2, lambda text: None))
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_a_killed_process_is_told() -> None:
    endless = replace(BRIEF, inner=replace(BRIEF.inner, epochs=100_000, patience=100_000))

    def kill(text: str) -> None:
        multiprocessing.active_children()[0].kill()

    with pytest.raises(ChildProcessError, match="lower --jobs"):
        list(run([replace(task, options=endless) for task in tasks()[:2]], 2, kill))
    assert not multiprocessing.active_children()
