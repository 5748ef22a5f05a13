"""Trainings side by side: the same results as one after another, and a clean end."""

from __future__ import annotations

import multiprocessing
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cdr.runs import runner
from cdr.runs.devices import spread
from cdr.runs.runner import Source, Task, run
from cdr.training.epochs import train
from cdr.training.options import InnerOptions, Options, OuterOptions, SearchOptions
from cdr.training.result import Result

GENERATED = Source(
    "g1", (("num_users", 60), ("num_source_items", 200), ("num_target_items", 100)), seeded=True
)
BRIEF = Options(
    inner=InnerOptions(epochs=2, batch_size=64),
    outer=OuterOptions(interval=2),
    search=SearchOptions(epochs=1),
)


def tasks(source: Source = GENERATED, options: Options = BRIEF) -> list[Task]:
    return [
        Task(variant, seed, source, options, "cpu")
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


def real_tasks(ratings: Path) -> list[Task]:
    return tasks(Source(str(ratings), (("source", "books"), ("target", "toys"))))


def test_the_seeds_of_a_variant_are_stacked(ratings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stacks: list[tuple[str, list[int]]] = []
    trained = runner.train_side_by_side

    def train_side_by_side(variant: str, data: Any, options: Any, seeds: Any, **told: Any) -> Any:
        stacks.append((variant, list(seeds)))
        return trained(variant, data, options, seeds, **told)

    monkeypatch.setattr(runner, "train_side_by_side", train_side_by_side)
    told: list[str] = []
    stacked = list(run(real_tasks(ratings), 1, told.append, stack_seeds=True))
    assert stacks == [("base", [0, 1]), ("ours", [0, 1])]
    assert [(t.variant, t.seed) for t, _ in stacked] == [
        ("base", 0),
        ("base", 1),
        ("ours", 0),
        ("ours", 1),
    ]
    assert told[0] == "base 2 seeds: epoch 1.0"
    assert told[-1].startswith("ours 2 seeds: epoch 2.0, valid AUC 0.")
    alone = by_task(list(run(real_tasks(ratings), 1, lambda text: None)))
    for task, result in stacked:
        # test_side_by_side.py says how much rounding can move them.
        close = np.abs(result.test.probability - alone[task].test.probability) < 1e-5
        assert close.all() and len(close)


def test_a_single_seed_is_no_stack(ratings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "train_side_by_side", None)
    one = real_tasks(ratings)[:1]
    assert [task for task, _ in run(one, 1, lambda text: None, stack_seeds=True)] == one


def test_seeds_with_data_of_their_own_are_not_stacked() -> None:
    with pytest.raises(ValueError, match="--stack-seeds.*g1"):
        list(run(tasks(), 1, lambda text: None, stack_seeds=True))


@pytest.mark.slow
def test_stacks_are_trained_in_processes(ratings: Path) -> None:
    here = list(run(real_tasks(ratings), 1, lambda text: None, stack_seeds=True))
    apart = by_task(list(run(real_tasks(ratings), 2, lambda text: None, stack_seeds=True)))
    for task, result in here:
        assert np.array_equal(result.test.probability, apart[task].test.probability)


@pytest.fixture
def workers() -> Callable[[], list[Any]]:
    """The processes that the test has started; the suite has some of its own."""
    before = multiprocessing.active_children()
    return lambda: [p for p in multiprocessing.active_children() if p not in before]


@pytest.mark.slow
def test_an_error_in_one_training_ends_the_others(workers: Callable[[], list[Any]]) -> None:
    endless = replace(BRIEF, inner=replace(BRIEF.inner, epochs=100_000, patience=100_000))
    broken = replace(endless, inner=replace(endless.inner, lr=1e12))
    both = [replace(tasks()[0], options=endless), replace(tasks()[1], options=broken)]
    with pytest.raises(ValueError, match=r"ours.*seed 0.*--inner\.lr"):
        list(run(both, 2, lambda text: None))
    assert not workers()


@pytest.mark.slow
def test_a_killed_process_is_told(workers: Callable[[], list[Any]]) -> None:
    endless = replace(BRIEF, inner=replace(BRIEF.inner, epochs=100_000, patience=100_000))

    def kill(text: str) -> None:
        workers()[0].kill()

    with pytest.raises(ChildProcessError, match="--jobs"):
        list(run([replace(task, options=endless) for task in tasks()[:2]], 2, kill))
    assert not workers()


# A training that takes the weights of another.

BROKEN = replace(BRIEF, search=replace(BRIEF.search, inner_lr=1e12))


def task(variant: str, seed: int = 0, options: Options = BRIEF) -> Task:
    return Task(variant, seed, GENERATED, options, "cpu")


def silent(text: str) -> None:
    pass


def test_a_teacher_is_the_search_of_the_same_training() -> None:
    assert task("retrain", 1).teacher == task("random", 1).teacher == task("search", 1)
    assert all(
        task(variant).teacher is None for variant in ("S", "base", "ours", "search", "oracle")
    )


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_retraining_waits_for_the_search(jobs: int) -> None:
    given = [task("retrain"), task("random"), task("search"), task("retrain", 1), task("search", 1)]
    done = list(run(given, jobs, silent))
    results = by_task(done)
    assert results.keys() == set(given)
    for seed in (0, 1):
        searched = task("search", seed)
        order = [each.variant for each, _ in done if each.seed == seed]
        assert order[0] == "search"
        data = GENERATED.load(seed)
        alone = train("retrain", data, BRIEF, seed, learned=results[searched].weights)
        found = results[task("retrain", seed)]
        assert np.array_equal(found.test.probability, alone.test.probability)
    assert not np.array_equal(
        results[task("random")].test.probability, results[task("retrain")].test.probability
    )


def test_weights_learned_before_need_no_teacher() -> None:
    data = GENERATED.load(0)
    weights = np.linspace(0.0, 2.0, len(data.source), dtype=np.float32)
    ((done, result),) = run([task("retrain")], 1, silent, learned={task("search"): weights})
    assert done == task("retrain")
    alone = train("retrain", data, BRIEF, 0, learned=weights)
    assert np.array_equal(result.test.probability, alone.test.probability)


def test_a_teacher_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="seed 1.*search"):
        list(run([task("search"), task("retrain", 1)], 1, silent))
    other = replace(BRIEF, inner=replace(BRIEF.inner, lr=1e-3))
    with pytest.raises(ValueError, match="seed 0.*search"):
        list(run([task("search", options=other), task("retrain")], 1, silent))
    weights = np.ones(3, dtype=np.float32)
    with pytest.raises(ValueError, match="learned.* 3 "):
        list(run([task("retrain")], 1, silent, learned={task("search"): weights}))


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_an_error_takes_the_place_of_a_result(jobs: int) -> None:
    given = [
        task("retrain", options=BROKEN),
        task("random", options=BROKEN),
        task("search", options=BROKEN),
        task("base"),
    ]
    found = dict(run(given, jobs, silent, keep_going=True))
    assert found.keys() == set(given)
    broken = found[task("search", options=BROKEN)]
    assert isinstance(broken, ValueError) and re.search(
        r"search \(seed 0\).*--search.inner-lr", str(broken)
    )
    for variant in ("retrain", "random"):
        orphan = found[task(variant, options=BROKEN)]
        assert isinstance(orphan, ValueError)
        assert str(orphan).startswith("the training that it takes the weights of failed: training")
    assert isinstance(found[task("base")], Result)


def test_an_error_ends_all_unless_told_otherwise() -> None:
    done = run([task("base"), task("search", options=BROKEN), task("S")], 1, silent)
    assert next(done)[0] == task("base")
    with pytest.raises(ValueError, match="--search.inner-lr"):
        next(done)


def test_stacked_seeds_teach_one_by_one(ratings: Path) -> None:
    source = Source(str(ratings), (("source", "books"), ("target", "toys")))
    given = [
        Task(variant, seed, source, BRIEF, "cpu")
        for variant in ("search", "retrain")
        for seed in (0, 1)
    ]
    results = by_task(list(run(given, 1, silent, stack_seeds=True)))
    assert results.keys() == set(given)
    weights = [results[each].weights for each in given[:2]]
    assert not np.array_equal(*weights)
    for each, learned in zip(given[2:], weights, strict=True):
        alone = train("retrain", source.load(0), BRIEF, each.seed, learned=learned)
        assert np.array_equal(results[each].test.probability, alone.test.probability)


def test_gpus_are_taken_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert spread("cuda", 5) == ["cuda:0", "cuda:1", "cuda:2", "cuda:0", "cuda:1"]
    assert spread("cuda:1", 2) == ["cuda:1", "cuda:1"]
    assert spread("cpu", 2) == ["cpu", "cpu"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert spread("cuda", 2) == ["cuda", "cuda"]


@pytest.mark.slow
def test_a_process_trains_on_the_device_that_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "spread", lambda device, jobs: ["nowhere"] * jobs)
    with pytest.raises(RuntimeError, match="nowhere"):
        list(run(tasks(), 2, lambda text: None))
