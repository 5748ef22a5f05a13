"""Processes that train one model together: the results of one, and checkpoints for any number."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist
from scenarios import NUM_USERS, brief

from _support.processes import in_processes
from cdr.common import ALONE, Processes, Stopped, map_tensors
from cdr.data import CrossDomainData, generate
from cdr.training.loop import Result, train
from cdr.training.options import Options

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
# An epoch is four batches and 6 rows. A reduction over processes adds in another order: some 1e-16
# of each number, which ten steps of Adam and four outer steps make larger by a factor below 100.
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
    # 246 rows: shares are ragged, the last batch of an epoch has fewer rows than 7 processes.
    changes = {"inner.batch_size": 60, "outer.batch_size": 31, "inner.epochs": 2} | changes
    options: Options = brief(model).changed(changes)
    processes = Processes(dist.group.WORLD) if dist.is_initialized() else ALONE
    told = {"processes": processes, "checkpoint": checkpoint, "on_step": on_step}
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


def _interrupt(epoch: int, *where: object) -> None:
    if epoch == 1:
        raise _Interrupted


def train_and_interrupt(folder: Path) -> tuple[dict[str, Numbers], dict[str, Numbers]]:
    """Every case; and some interrupted in the second epoch, and resumed."""
    torch.set_default_dtype(torch.float64)
    data = double_data()
    whole, resumed = {case: run_case(case, data) for case in CASES}, {}
    for case in RESUMED:
        with suppress(_Interrupted):
            run_case(case, data, folder / case, _interrupt)
        if dist.get_rank() == 0:
            shutil.copytree(folder / case, folder / f"{case}, kept")
        dist.barrier()
        resumed[case] = run_case(case, data, folder / case)
    return whole, resumed


def resume(folder: Path) -> dict[str, Numbers]:
    """The interrupted cases, resumed by other processes."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        data, found = double_data(), {}
        for case in RESUMED:
            found[case] = run_case(case, data, folder / f"{case}, kept")
    finally:
        torch.set_default_dtype(before)
    return found


class Two(NamedTuple):
    """What two processes leave behind."""

    whole: dict[str, Numbers]
    resumed: dict[str, Numbers]
    folder: Path


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Two:
    folder = tmp_path_factory.mktemp("two")
    first, second = in_processes(train_and_interrupt, 2, folder, folder)
    for one, other in zip(first, second, strict=True):
        assert list(one) == list(other)
        for case in one:
            assert largest_difference(one[case], other[case]) == 0.0
    return Two(*first, folder)


@pytest.fixture(scope="module")
def one() -> Callable[[str], Numbers]:
    data = double_data()

    def alone(case: str) -> Numbers:
        torch.set_default_dtype(torch.float64)
        try:
            return run_case(case, data)
        finally:
            torch.set_default_dtype(torch.float32)

    return alone


def largest_difference(found: Numbers, expected: Numbers) -> float:
    assert found.keys() == expected.keys()
    assert all(found[name].shape == expected[name].shape for name in found)
    return max(np.abs(found[n] - expected[n]).max(initial=0.0) for n in found)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_give_the_result_of_one(
    two: Two, one: Callable[[str], Numbers], case: str
) -> None:
    difference = largest_difference(two.whole[case], one(case))
    print(case, difference)
    if case == OWN_STATISTICS:
        assert difference > TOLERANCE
    else:
        assert difference < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("case", RESUMED)
def test_an_interrupted_training_goes_on_bit_for_bit(two: Two, case: str) -> None:
    assert largest_difference(two.resumed[case], two.whole[case]) == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 3])
def test_another_number_of_processes_goes_on(two: Two, size: int, tmp_path: Path) -> None:
    folder = tmp_path / "two"
    shutil.copytree(two.folder, folder)
    several = [resume(folder)] if size == 1 else in_processes(resume, size, tmp_path, folder)
    for found in several:
        for case in RESUMED:
            difference = largest_difference(found[case], two.whole[case])
            print(size, case, difference)
            assert difference < TOLERANCE or case == OWN_STATISTICS


def test_a_checkpoint_of_another_training_is_refused(tiny: CrossDomainData, tmp_path: Path) -> None:
    options = brief("twotower")
    train("base", tiny, options, 0, checkpoint=tmp_path / "one")
    for variant, seed, changed, told in (
        ("S", 0, options, "variant .there: base; here: S"),
        ("base", 1, options, "seed"),
        ("base", 0, options.changed({"inner.lr": 0.1}), "options"),
    ):
        with pytest.raises(ValueError, match=f"one is a checkpoint of .*{told}"):
            train(variant, tiny, changed, seed, checkpoint=tmp_path / "one")


def shares_and_failures(rows: int) -> dict[str, Any]:
    """What this process gets of some rows, and what it hears when another one fails."""
    processes = Processes(dist.group.WORLD)
    mean = processes.share(torch.arange(float(rows)))
    found: dict[str, Any] = {"share": mean.tolist()}
    found["gathered"] = [part.tolist() for part in processes.rows_of_all(mean)]
    try:
        with processes.failing_together():
            if processes.rank == 1:
                raise OSError("the disk is full")
            processes.total(torch.ones(3))
    except (OSError, Stopped) as error:
        found["told"] = f"{type(error).__name__}: {error}"
    try:
        processes.total(torch.ones(3 + processes.rank))
    except RuntimeError as error:
        found["unequal"] = str(error)
    return found


@pytest.mark.parametrize("rows", [5, 1])
def test_what_one_process_cannot_do_all_hear_of(rows: int, tmp_path: Path) -> None:
    first, second = in_processes(shares_and_failures, 2, tmp_path, rows)
    # Fewer rows than processes go to all of them, so that no share is empty.
    expected = ([0.0, 1.0, 2.0], [3.0, 4.0]) if rows == 5 else ([0.0], [0.0])
    assert (first["share"], second["share"]) == expected
    assert first["gathered"] == second["gathered"] == list(expected)
    assert first["told"] == "Stopped: process 1 of 2: the disk is full"
    assert second["told"] == "OSError: the disk is full"
    assert "3 to 4 numbers" in first["unequal"] and first["unequal"] == second["unequal"]
