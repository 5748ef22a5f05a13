"""Runs and grids that are killed at any moment go on: the same numbers, and nothing left over."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest

from _support.commands import (
    BRIEF,
    DOMAINS,
    Command,
    grid_results,
    leftovers,
    living_in,
    results,
)

VARIANTS = ("base", "ours", "search", "retrain")


def given(ratings: Path) -> list[Any]:
    return ["--data", ratings, *DOMAINS, *BRIEF, "--variants", *VARIANTS]


@pytest.fixture(scope="module")
def whole(ratings: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], float]:
    """The results of a run that nobody killed, and how long it took."""
    folder = tmp_path_factory.mktemp("whole")
    started = time.monotonic()
    command = Command("run_biao", [*given(ratings), "--out", "one"], folder)
    assert command.wait() == 0, command.stderr
    return results(folder / "one"), time.monotonic() - started


def killed_and_resumed(
    folder: Path, arguments: list[Any], moments: list[float]
) -> tuple[int, Command]:
    """Kill a run at each of some moments; how often it was, and the command that finished it."""
    killed = 0
    for moment in [*moments, 300.0]:
        begun = (folder / "one.partial" / "resume.json").exists()
        again = ["--resume", "one.partial"] if begun else [*arguments, "--out", "one"]
        command = Command("run_biao", again, folder)
        if not command.kill(moment):
            assert command.wait() == 0, command.stderr
            return killed, command
        killed += 1
        assert not living_in(folder), "a process of the killed command lives on"
    raise AssertionError("it did not finish")


def check_kills(
    ratings: Path, folder: Path, whole: tuple[dict[str, Any], float], seed: int, jobs: int
) -> int:
    """Kill a run at three random moments, and compare what it comes to."""
    draws, (expected, seconds) = random.Random(seed), whole
    # Processes of their own take a few seconds to start.
    moments = [draws.uniform(0.0, seconds + 10.0 * (jobs > 1)) for _ in range(3)]
    killed, _ = killed_and_resumed(folder, [*given(ratings), "--jobs", jobs], moments)
    assert results(folder / "one") == expected
    assert leftovers(folder) == [] and not living_in(folder)
    return killed


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_a_killed_run_goes_on_bit_for_bit(
    seed: int, ratings: Path, tmp_path: Path, whole: tuple[dict[str, Any], float]
) -> None:
    check_kills(ratings, tmp_path, whole, seed, 1)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(20))
def test_a_killed_run_of_several_processes_goes_on_bit_for_bit(
    seed: int, ratings: Path, tmp_path: Path, whole: tuple[dict[str, Any], float]
) -> None:
    check_kills(ratings, tmp_path, whole, seed, 2)


def reproduced(ratings: Path, folder: Path, jobs: int, moments: list[float]) -> dict[str, Any]:
    """What a grid holds after a command that was killed at some moments, and given again."""
    told = ["table1", "--data", f"{ratings}:books:toys", "--models", "twotower", "--seeds", 1]
    told += [*BRIEF, "--jobs", jobs, "--cache", "grid", "--out", "one"]
    for moment in moments:
        if not Command("reproduce", told, folder).kill(moment):
            break
        assert not living_in(folder)
    command = Command("reproduce", told, folder)
    assert command.wait() == 0, command.stderr
    assert leftovers(folder / "grid") in ([], ["states"])
    assert not living_in(folder) and not leftovers(folder / "one")
    return grid_results(folder / "grid")


@pytest.fixture(scope="module")
def grid(ratings: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], float]:
    """What a grid holds after a command that nobody killed, and how long it took."""
    pytest.importorskip("matplotlib")
    started = time.monotonic()
    found = reproduced(ratings, tmp_path_factory.mktemp("grid"), 1, [])
    return found, time.monotonic() - started


@pytest.mark.slow
def test_a_killed_grid_goes_on_bit_for_bit(
    ratings: Path, tmp_path: Path, grid: tuple[dict[str, Any], float]
) -> None:
    draws, (expected, seconds) = random.Random(0), grid
    moments = [draws.uniform(0.0, seconds) for _ in range(2)]
    assert reproduced(ratings, tmp_path, 1, moments) == expected


@pytest.mark.long
@pytest.mark.parametrize("seed", range(20))
def test_a_killed_grid_of_several_processes_goes_on_bit_for_bit(
    seed: int, ratings: Path, tmp_path: Path, grid: tuple[dict[str, Any], float]
) -> None:
    draws, (expected, seconds) = random.Random(seed), grid
    moments = [draws.uniform(0.0, seconds + 10.0) for _ in range(3)]
    assert reproduced(ratings, tmp_path, 2, moments) == expected
