"""Runs and grids that are killed at any moment go on: the same numbers, and nothing left over."""

from __future__ import annotations

import os
import random
import time
from dataclasses import dataclass
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

pytest.importorskip("matplotlib")

KILLS = int(os.environ.get("KILLS", "20"))  # of the long tests


@dataclass
class Case:
    """A command that is killed, and given again until it has finished.

    Args:
        ratings: The data.
        grid: Whether it is reproduce.py, which keeps a grid, or run_biao.py.
        jobs: Its processes.
    """

    ratings: Path
    grid: bool
    jobs: int = 1
    seconds: float = 0.0

    def command(self, folder: Path) -> Command:
        """The command that begins, or goes on with what an earlier one has left."""
        if self.grid:
            told = ["table1", "--data", f"{self.ratings}:books:toys", "--models", "twotower"]
            told += ["--seeds", 1, "--cache", "grid", "--out", "one"]
        elif (folder / "one.partial" / "resume.json").exists():
            return Command("run_biao", ["--resume", "one.partial"], folder)
        else:
            told = ["--data", self.ratings, *DOMAINS, "--out", "one"]
            told += ["--variants", "base", "ours"]
            told += ["search", "retrain"] * (self.jobs > 1)
        program = "reproduce" if self.grid else "run_biao"
        return Command(program, [*told, *BRIEF, "--jobs", self.jobs], folder)

    def results(self, folder: Path) -> dict[str, Any]:
        return grid_results(folder / "grid") if self.grid else results(folder / "one")

    def whole(self, folder: Path) -> dict[str, Any]:
        """What it comes to if nobody kills it; notes how long it takes."""
        started = time.monotonic()
        command = self.command(folder)
        assert command.wait() == 0, command.stderr
        self.seconds = time.monotonic() - started
        return self.results(folder)

    def killed(self, folder: Path, moments: list[float]) -> int:
        """Kill it after so many seconds, each time that it is given; how often it was killed."""
        folder.mkdir()
        kills = 0
        for moment in moments:
            command = self.command(folder)
            if not command.kill(moment):
                assert command.wait() == 0, command.stderr
                break
            kills += 1
            assert not living_in(folder), "a process of the killed command lives on"
            if not self.grid and (folder / "one").exists():
                # Killed with its results in place: nothing is left to do but to tidy up.
                command = Command("run_biao", ["--resume", "one"], folder)
                assert command.wait() == 2 and "that run is finished" in command.stderr
                break
        else:
            command = self.command(folder)
            assert command.wait() == 0, command.stderr
        assert leftovers(folder) == [] and not living_in(folder)
        return kills


@pytest.mark.slow
@pytest.mark.parametrize("grid", [False, True], ids=["run", "grid"])
def test_a_killed_command_goes_on_bit_for_bit(grid: bool, ratings: Path, tmp_path: Path) -> None:
    case, draws = Case(ratings, grid), random.Random(1)
    (tmp_path / "whole").mkdir()
    expected = case.whole(tmp_path / "whole")
    case.killed(tmp_path / "killed", [draws.uniform(0.2, 0.9) * case.seconds for _ in range(2)])
    assert case.results(tmp_path / "killed") == expected


@pytest.mark.long
@pytest.mark.parametrize("grid", [False, True], ids=["run", "grid"])
def test_a_command_of_several_processes_goes_on_bit_for_bit(
    grid: bool, ratings: Path, tmp_path: Path
) -> None:
    case, draws, kills, rounds = Case(ratings, grid, jobs=2), random.Random(grid), 0, 0
    (tmp_path / "whole").mkdir()
    expected = case.whole(tmp_path / "whole")
    while kills < KILLS:
        rounds += 1
        most = min(5, KILLS - kills)
        # Half the time, since each command has less to do than the one before.
        moments = [draws.uniform(0.0, case.seconds / 2) for _ in range(most)]
        kills += case.killed(tmp_path / str(rounds), moments)
        assert case.results(tmp_path / str(rounds)) == expected
        print(f"{kills} kills in {rounds} runs", flush=True)
