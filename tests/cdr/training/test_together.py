"""Processes that train one model together: the results of one, and checkpoints for any number."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from scenarios import NUM_USERS, brief

from _support.processes import Processes as Pool
from _support.processes import values
from cdr.common import ALONE, Processes, Stopped, map_tensors
from cdr.data import CrossDomainData, generate
from cdr.training import saves
from cdr.training.epochs import train
from cdr.training.options import Options
from cdr.training.result import Result
from cdr.training.saves import Saves

CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "S": ("S", "conet", {}),
    "0": ("0", "conet", {}),
    "base": ("base", "conet", {}),
    "oracle": ("oracle", "conet", {}),
    "base, tables by rows": ("base", "conet", {"inner.lazy_tables": True}),
    "base, source drawn from all": ("base", "minet", {"inner.source_batch": "independent"}),
    "ours": ("ours", "conet", {}),
    "ours, weights ahead": ("ours", "minet", {"outer.weights_ahead": 2}),
    "ours, softmax, split": ("split-0.2", "twotower", {"perceptron.normalization": "softmax"}),
    "ours, dev head": ("ours", "conet", {"model.dev_head": True, "outer.dev_head_steps": 2}),
    "search": ("search", "conet", {"search.epochs": 2}),
    "loss": ("loss", "conet", {}),
    "group": ("group", "conet", {}),
    "constant, identity": ("constant", "conet", {"outer.solver": "identity"}),
    "ours, batch statistics": ("ours", "dasl", {"model.dropout": 0.1}),
}
RESUMED = ("base, tables by rows", "ours", "ours, dev head", "search", "ours, batch statistics")
# Batch statistics, and dropout, are those of a process's share of the batch.
OWN_STATISTICS = "ours, batch statistics"
# A reduction over processes adds in another order: some 1e-16 of each number, which twelve steps of
# Adam and six outer steps make larger by a factor below 1000.
TOLERANCE = 1e-13

Numbers = dict[str, np.ndarray]


def double_data() -> CrossDomainData:
    data = generate(num_users=NUM_USERS, num_source_items=200, num_target_items=100)
    return map_tensors(lambda x: x.double() if x.is_floating_point() else x, data)


def run_case(
    case: str,
    data: CrossDomainData,
    checkpoint: Path | None = None,
    on_step: Callable[..., None] = lambda *where: None,
) -> Numbers:
    """A training in float64 by all processes there are, as arrays."""
    variant, model, changes = CASES[case]
    # 256 rows: shares of 26 and 25 rows, and a last batch of a single one.
    changes = {"inner.batch_size": 51, "outer.batch_size": 31, "inner.epochs": 2} | changes
    options: Options = brief(model).changed(changes)
    processes = Processes(dist.group.WORLD) if dist.is_initialized() else ALONE
    kept = checkpoint and Saves(checkpoint, required=True, seconds=0.0)
    told = {"processes": processes, "saves": kept, "on_step": on_step}
    return numbers(train(variant, data, options, 3, **told))


def numbers(result: Result) -> Numbers:
    found = {f"model.{name}": x.numpy() for name, x in result.state["model"].items()}
    if "weighter" in result.state:
        found |= {name: x.numpy() for name, x in result.state["weighter"]["weighter"].items()}
    found["scores"] = result.test.probability
    found["history"] = np.array([[e["loss"], e["auc"]] for e in result.history])
    if result.weights is not None:
        found["weights"] = result.weights
        found["outer"] = np.array([record["num_hvps"] for record in result.outer])
    return {name: np.array(value) for name, value in found.items()}


class _Interrupted(Exception):
    pass


def _interrupt(epoch: int, step: int, *where: object) -> None:
    if (epoch, step) == (1, 4):
        raise _Interrupted


@contextmanager
def double() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def train_all(rank: int, size: int) -> dict[str, Numbers]:
    with double():
        data = double_data()
        return {case: run_case(case, data) for case in CASES}


def interrupt(rank: int, size: int, folder: Path) -> None:
    """Leave states in the middle of the second epoch behind."""
    saves._AGREED = 1
    with double():
        data = double_data()
        for case in RESUMED:
            with suppress(_Interrupted):
                run_case(case, data, folder / case, _interrupt)


def resume(rank: int, size: int, folder: Path) -> dict[str, Numbers]:
    """The interrupted trainings, to their end."""
    with double():
        data = double_data()
        return {case: run_case(case, data, folder / case) for case in RESUMED}


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    pool = Pool(2, tmp_path_factory.mktemp("pool"))
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def whole(pool: Pool) -> dict[str, Numbers]:
    """Every case, trained by two processes."""
    first, second = values(pool.run(train_all))
    for case in CASES:
        assert largest_difference(first[case], second[case]) == 0.0
    return first


@pytest.fixture(scope="module")
def kept(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The states of two processes in the middle of the second epoch."""
    folder = tmp_path_factory.mktemp("kept")
    values(pool.run(interrupt, folder))
    return folder


@pytest.fixture(scope="module")
def double_small() -> CrossDomainData:
    with double():
        return double_data()


def largest_difference(found: Numbers, expected: Numbers) -> float:
    assert found.keys() == expected.keys()
    assert all(found[name].shape == expected[name].shape for name in found)
    return max(np.abs(found[n] - expected[n]).max(initial=0.0) for n in found)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_give_the_result_of_one(
    whole: dict[str, Numbers], double_small: CrossDomainData, case: str
) -> None:
    with double():
        difference = largest_difference(whole[case], run_case(case, double_small))
    assert (difference < TOLERANCE) != (case == OWN_STATISTICS)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2, 3])
def test_any_number_of_processes_goes_on_from_a_checkpoint_of_two(
    whole: dict[str, Numbers], kept: Path, pool: Pool, size: int, tmp_path: Path
) -> None:
    folder = tmp_path / "kept"
    shutil.copytree(kept, folder)
    if size == 1:
        found = [resume(0, 1, folder)]
    elif size == 2:
        found = values(pool.run(resume, folder))
    else:
        three = Pool(3, tmp_path)
        try:
            found = values(three.run(resume, folder))
        finally:
            three.close()
    for case in RESUMED:
        differences = {largest_difference(each[case], whole[case]) for each in found}
        assert len(differences) == 1
        if size == 2:
            assert differences == {0.0}
        elif case != OWN_STATISTICS:
            assert max(differences) < TOLERANCE


def test_a_checkpoint_of_another_training_is_refused(tiny: CrossDomainData, tmp_path: Path) -> None:
    options = brief("twotower")
    kept = Saves(tmp_path / "one", required=True)
    train("base", tiny, options, 0, saves=kept)
    for variant, seed, changed, told in (
        ("S", 0, options, "variant .there: base; here: S"),
        ("base", 1, options, "seed"),
        ("base", 0, options.changed({"inner.lr": 0.1}), "options"),
    ):
        with pytest.raises(ValueError, match=f"one is a checkpoint of .*{told}"):
            train(variant, tiny, changed, seed, saves=kept)


def shares_and_failures(rank: int, size: int, rows: int) -> dict[str, Any]:
    """What this process gets of some rows, and what it hears when another one fails."""
    processes = Processes(dist.group.WORLD)
    mean = processes.share(torch.arange(float(rows)))
    found: dict[str, Any] = {"share": mean.tolist()}
    found["gathered"] = [part.tolist() for part in processes.rows_of_all(mean)]
    try:
        with processes.failing_together():
            if rank == 1:
                raise OSError("the disk is full")
            processes.total(torch.ones(3))
    except (OSError, Stopped) as error:
        found["told"] = f"{type(error).__name__}: {error}"
    try:
        processes.total(torch.ones(3 + rank))
    except Stopped as error:
        found["unequal"] = str(error)
    return found


@pytest.mark.parametrize("rows", [5, 1])
def test_what_one_process_cannot_do_all_hear_of(rows: int, pool: Pool) -> None:
    first, second = values(pool.run(shares_and_failures, rows))
    # Fewer rows than processes go to all of them, so that no share is empty.
    expected = ([0.0, 1.0, 2.0], [3.0, 4.0]) if rows == 5 else ([0.0], [0.0])
    assert (first["share"], second["share"]) == expected
    assert first["gathered"] == second["gathered"] == list(expected)
    assert first["told"] == "Stopped: process 1 of 2: the disk is full"
    assert second["told"] == "OSError: the disk is full"
    assert "3 to 4 numbers" in first["unequal"] and first["unequal"] == second["unequal"]
