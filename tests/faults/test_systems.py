"""What a system does to a run: full disks, limits, signals, closed output, odd locales."""

from __future__ import annotations

import os
import resource
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import cdr.run_biao
from _support.commands import BRIEF, DOMAINS, Command, leftovers, living_in, results

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits and mounts of Linux")

FIRST = "one.partial/trainings/??/*/run.json"


def given(ratings: Path) -> list[Any]:
    told = ["--data", ratings, *DOMAINS, *BRIEF, "--model", "twotower", "--inner.epochs", 3]
    return [*told, "--variants", "S", "base", "0", "--out", "one"]


@pytest.fixture(scope="module")
def expected(ratings: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The results of a run to which nothing happens."""
    folder = tmp_path_factory.mktemp("whole")
    command = Command("run_biao", given(ratings), folder)
    assert command.wait() == 0, command.stderr
    return results(folder / "one")


def begun(ratings: Path, folder: Path) -> Command:
    """A run that has finished its first training."""
    command = Command("run_biao", given(ratings), folder)
    command.wait_for(FIRST)
    return command


def check_resumed(folder: Path, expected: dict[str, Any], finished: int = 1) -> None:
    """Go on, and compare."""
    assert len(list(folder.glob(FIRST))) >= finished
    command = Command("run_biao", ["--resume", "one.partial"], folder)
    assert command.wait() == 0, command.stderr
    assert results(folder / "one") == expected
    assert leftovers(folder) == [] and not living_in(folder)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_run_that_goes_on(
    number: signal.Signals, ratings: Path, tmp_path: Path, expected: dict[str, Any]
) -> None:
    for attempt in range(4):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        command = begun(ratings, folder)
        os.kill(command.pid, number)
        # The trainings are so short that the last one may have ended before the signal comes.
        if command.wait() != 0:
            break
        assert results(folder / "one") == expected
    assert command.wait() == 128 + number
    assert "interrupted" in command.stderr and "--resume one.partial" in command.stderr
    check_resumed(folder, expected)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, of 8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("nothing can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_costs_no_finished_training(
    ratings: Path, small_disk: Path, expected: dict[str, Any]
) -> None:
    command = begun(ratings, small_disk)
    try:
        with (small_disk / "ballast").open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
    except OSError:
        pass
    assert command.wait() == 2
    (small_disk / "ballast").unlink()
    assert "No space left" in command.stderr or not command.stderr  # which has no room either
    check_resumed(small_disk, expected)


@pytest.mark.slow
def test_a_limit_on_the_size_of_files_costs_no_finished_training(
    ratings: Path, tmp_path: Path, expected: dict[str, Any]
) -> None:
    command = begun(ratings, tmp_path)
    # The page is larger, and so may be a training's arrays.
    resource.prlimit(command.pid, resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    assert command.wait() == 2
    assert "File too large" in command.stderr and "--resume one.partial" in command.stderr
    check_resumed(tmp_path, expected)


@pytest.mark.long
def test_memory_that_runs_out_costs_no_finished_training(
    ratings: Path, tmp_path: Path, expected: dict[str, Any]
) -> None:
    command = begun(ratings, tmp_path)
    resource.prlimit(command.pid, resource.RLIMIT_AS, (1 << 20, resource.RLIM_INFINITY))
    # With no byte left even an error may find no room to be raised, and OpenBLAS asks for its
    # buffer for ever: a process that hangs is killed.
    with suppress(TimeoutError):
        command.wait(30)
    # It may have written everything before it found no memory to end with.
    if (tmp_path / "one").exists():
        assert results(tmp_path / "one") == expected
    else:
        check_resumed(tmp_path, expected)


@pytest.mark.long
def test_a_run_in_little_memory_is_gone_on_with_in_more(
    ratings: Path, tmp_path: Path, expected: dict[str, Any]
) -> None:
    """From 1.2 GB, in which torch and the data find room, to what the whole run takes."""
    told = [sys.executable, cdr.run_biao.__file__, *map(str, given(ratings))]
    for kilobytes in range(1_200_000, 1_600_000, 50_000):
        folder = tmp_path / str(kilobytes)
        folder.mkdir()
        limited = f"ulimit -v {kilobytes}; exec {shlex.join(told)}"
        command = ["sh", "-c", limited]
        # What it says depends on where memory ran out: Python itself may find none for an error,
        # and OpenBLAS asks for its buffer for ever.
        try:
            code = subprocess.run(command, cwd=folder, capture_output=True, timeout=60).returncode
        except subprocess.TimeoutExpired:
            code = 2
        assert code in (0, 1, 2)
        if code == 0:
            assert results(folder / "one") == expected
        elif (folder / "one.partial").exists():
            check_resumed(folder, expected, finished=0)


@pytest.mark.slow
@pytest.mark.parametrize(("stdout", "reason"), [("closed", "Broken pipe"), ("full", "No space")])
def test_output_that_nobody_takes_does_not_end_a_run(
    stdout: str, reason: str, ratings: Path, tmp_path: Path, expected: dict[str, Any]
) -> None:
    command = Command("run_biao", given(ratings), tmp_path, stdout)
    assert command.wait() == 0
    assert f"stdout cannot be written any more ({reason}" in command.stderr
    assert len(command.stderr.splitlines()) == 1
    assert results(tmp_path / "one") == expected


@pytest.mark.slow
def test_names_that_the_locale_has_no_letters_for(ratings: Path, tmp_path: Path) -> None:
    folder = tmp_path / "donn\u00e9es \u4e2d"
    folder.mkdir()
    (folder / "ratings.csv").write_bytes(ratings.read_bytes())
    unset = ("PYTHONUTF8", "PYTHONIOENCODING", "LANG", "LC_CTYPE")
    ascii_only = {key: value for key, value in os.environ.items() if key not in unset}
    ascii_only |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    told = [*given(ratings)[2:-2], "--inner.epochs", 1]

    def call(*arguments: Any) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, cdr.run_biao.__file__, *map(str, arguments)]
        return subprocess.run(command, cwd=folder, env=ascii_only, capture_output=True)

    out = "r\u00e9sultats"
    ended = call("--data", "ratings.csv", *told, "--out", out)
    assert ended.returncode == 0, ended.stderr.decode()
    assert ended.stdout.isascii()  # → and · are escapes
    assert out in (folder / out / "command.txt").read_text(encoding="utf-8")
    assert out in (folder / out / "report.html").read_text(encoding="utf-8")
