"""A run that did not finish keeps what it has finished, and goes on with what it lacks."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import cdr.run_biao
import cdr.runs.runner
from _support.commands import results
from cdr.run_biao import main
from cdr.runs import unfinished
from cdr.runs.signals import Ended
from cdr.runs.unfinished import Unfinished

DOMAINS = ("--source", "books", "--target", "toys")
BRIEF = ("--inner.epochs", "1", "--inner.batch-size", "64", "--model", "twotower")


def run(*arguments: Any) -> int:
    """The exit code, of the parser's exit too."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as end:
        return int(end.code or 0)


@pytest.fixture
def given(ratings: Path) -> list[Any]:
    return ["--data", ratings, *DOMAINS, *BRIEF, "--variants", "S", "0", "base"]


@pytest.fixture(scope="module")
def expected(ratings: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The results of the run that nobody interrupts."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    told = ("--data", ratings, *DOMAINS, *BRIEF, "--variants", "S", "0", "base")
    assert run(*told, "--out", out) == 0
    return results(out)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Lets the trainings of a variant raise an error until the block ends."""
    trained = cdr.runs.runner.train

    def fail(variant: str, error: BaseException | None) -> None:
        def train(name: str, *arguments: Any, **told: Any) -> Any:
            if error is not None and name == variant:
                raise error
            done.append(name)
            return trained(name, *arguments, **told)

        monkeypatch.setattr(cdr.runs.runner, "train", train)

    done: list[str] = []
    fail.done = done  # type: ignore[attr-defined]
    yield fail


ERRORS = {
    "SIGINT": (KeyboardInterrupt(), 130, "interrupted; 2 of 3"),
    "SIGTERM": (Ended(15), 143, "interrupted; 2 of 3"),
    "a full disk": (OSError(28, "No space left on device"), 2, "No space left on device; 2 of 3"),
    "a dead worker": (ChildProcessError("a process was killed"), 2, "was killed; 2 of 3"),
    "memory": (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, "memory ran out"),
    "memory for a library": (ImportError("x.so: failed to map segment"), 2, "memory ran out"),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_what_is_finished_is_kept_whatever_ends_the_run(
    kind: str,
    given: list[Any],
    expected: dict[str, Any],
    failing: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    error, code, words = ERRORS[kind]
    failing("base", error)
    assert run(*given, "--out", tmp_path / "a run") == code
    told = capsys.readouterr().err
    assert words in told and len(told.splitlines()) == 1
    assert os.listdir(tmp_path) == ["a run.partial"]
    command = told.partition("go on with: run_biao.py ")[2]
    failing("base", None)
    failing.done.clear()
    assert run(*shlex.split(command)) == 0
    assert failing.done == ["base"]
    assert os.listdir(tmp_path) == ["a run"]
    assert results(tmp_path / "a run") == expected
    assert not (tmp_path / "a run" / "resume.json").exists()


def test_a_cross_fitting_that_is_resumed_takes_what_is_finished(
    given: list[Any], failing: Any, tmp_path: Path, parts: list[str]
) -> None:
    given = [*given, "crossfit", "--search.epochs", "1", "--search.folds", "2"]
    assert run(*given, "--out", tmp_path / "whole") == 0
    assert parts == ["S", "0", "base"]
    failing("crossfit", KeyboardInterrupt())
    assert run(*given, "--out", tmp_path / "one") == 130
    failing("crossfit", None)
    parts.clear()
    assert run("--resume", tmp_path / "one") == 0
    assert parts == [] and results(tmp_path / "one") == results(tmp_path / "whole")
    *plain, kept = (
        torch.load(tmp_path / "one" / f"model-{name}-seed0.pt", weights_only=True)["model"]
        for name in ("S", "0", "base", "crossfit")
    )
    same = [model for model in plain if model.keys() == kept.keys()]
    assert any(all(torch.equal(model[name], kept[name]) for name in kept) for model in same)


def test_an_error_of_another_kind_is_shown_and_keeps_as_much(
    given: list[Any], failing: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failing("base", TypeError("a mistake in the code"))
    with pytest.raises(TypeError):
        run(*given, "--out", tmp_path / "one")
    assert "TypeError: a mistake in the code; 2 of 3 trainings" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["one.partial"]


def test_a_report_that_fails_is_made_again_without_any_training(
    given: list[Any],
    expected: dict[str, Any],
    failing: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*arguments: Any) -> None:
        raise ValueError("the page cannot be drawn")

    with monkeypatch.context() as patch:
        patch.setattr(cdr.run_biao, "write_page", broken)
        assert run(*given, "--out", tmp_path / "one") == 2
    assert "cannot be drawn; 3 of 3 trainings are finished" in capsys.readouterr().err
    failing("base", None)
    assert run("--resume", tmp_path / "one") == 0  # by the name of the finished run, too
    assert failing.done == [] and results(tmp_path / "one") == expected


def test_a_seed_that_diverges_costs_its_own_row_of_numbers_only(
    given: list[Any],
    expected: dict[str, Any],
    failing: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trained = cdr.runs.runner.train

    def train(variant: str, data: Any, options: Any, seed: int, **told: Any) -> Any:
        if (variant, seed) == ("S", 0):
            raise ValueError("training S (seed 0) diverged")
        return trained(variant, data, options, seed, **told)

    monkeypatch.setattr(cdr.runs.runner, "train", train)
    assert run(*given, "--seeds", 2, "--out", tmp_path / "one") == 1
    sentence = "Seed 0 is left out of all rows, since a training of it failed: training S (seed 0)"
    assert sentence in " ".join(capsys.readouterr().out.split())
    found = json.loads((tmp_path / "one" / "metrics.json").read_text())
    assert [[one["seed"] for one in several] for several in found["runs"].values()] == [[1]] * 3
    assert sum(name.startswith("model-") for name in os.listdir(tmp_path / "one")) == 5
    # Where no seed is complete there is no table, but what was trained is kept.
    assert run(*given, "--out", tmp_path / "two") == 2
    assert "S (seed 0) diverged; 2 of 3 trainings are finished" in capsys.readouterr().err
    monkeypatch.setattr(cdr.runs.runner, "train", trained)
    assert run("--resume", tmp_path / "two.partial") == 0
    assert results(tmp_path / "two") == expected


@pytest.fixture
def interrupted(given: list[Any], failing: Any, tmp_path: Path) -> Path:
    """The folder of a run with two of three trainings."""
    failing("base", KeyboardInterrupt())
    assert run(*given, "--out", tmp_path / "one") == 130
    failing("base", None)
    return tmp_path / "one.partial"


@pytest.mark.slow
def test_a_run_goes_on_with_its_own_arguments(
    interrupted: Path, given: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    for other, named in (
        (["--seeds", 2], "--seeds"),
        (["--variants", "S"], "--variants"),
        (["--inner.lr", "0.1"], "--inner.lr"),
        (["--data.test", "last-share"], "--data.test"),
        (["--out", tmp_path / "two"], "--out"),
    ):
        assert run("--resume", interrupted, *other) == 2
        told = capsys.readouterr().err
        assert f"{named} is not that of the run in {interrupted}" in told
        assert "2 of 3 trainings" not in told  # nothing has begun
    assert run(f"--resume={interrupted}", "--seeds", 1, "--device", "cpu") == 0


def test_what_is_no_unfinished_run_is_refused(
    interrupted: Path, given: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert run("--resume", tmp_path / "never") == 2
    assert "there is no unfinished run" in capsys.readouterr().err
    # Another run cannot take its place, and is told how the first one goes on.
    assert run(*given, "--out", tmp_path / "one") == 2
    assert "of a run that did not finish" in (told := capsys.readouterr().err)
    assert f"go on with: run_biao.py --resume {interrupted}" in told
    assert run("--resume", interrupted) == 0
    assert run("--resume", interrupted) == 2
    assert "that run is finished" in capsys.readouterr().err


def test_other_data_or_other_code_are_refused(
    interrupted: Path,
    ratings: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = ratings.read_bytes()
    try:
        ratings.write_bytes(before.replace(b"5", b"4", 1))
        cdr.runs.runner.clear_loaded()
        assert run("--resume", interrupted) == 2
        told = capsys.readouterr().err
        assert "the data are not those" in told and "content.ratings.csv" in told
    finally:
        ratings.write_bytes(before)
        cdr.runs.runner.clear_loaded()
    with monkeypatch.context() as patch:
        patch.setattr(cdr.runs.grid, "_FORMAT", 99)
        assert run("--resume", interrupted) == 2
        assert "would train something else" in capsys.readouterr().err
    assert run("--resume", interrupted) == 0


def test_a_damaged_note_is_told(interrupted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (interrupted / "resume.json").write_text("{")
    assert run("--resume", interrupted) == 2
    assert "resume.json is damaged" in capsys.readouterr().err


def test_a_damaged_training_is_done_again(
    interrupted: Path, expected: dict[str, Any], failing: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = next(interrupted.glob("trainings/??/*/model.pt"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert run("--resume", interrupted) == 0
    assert len(failing.done) == 4  # two, and two
    assert "is damaged (the content of model.pt was changed)" in capsys.readouterr().out
    assert results(interrupted.with_name("one")) == expected


def test_arguments_are_kept_as_the_bytes_that_they_are(tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9/\xc3\xa9.csv")
    note = Unfinished(("--data", odd, "x y"), "/", None, {"spec": "é"}, {"S-seed0": "1"})
    note.write(tmp_path)
    assert (tmp_path / "resume.json").read_bytes().isascii()
    assert Unfinished.read(tmp_path) == note
    assert unfinished.differing({"a": {"b": 1}}, {"a": {"b": 2}, "c": 1}) == ["a.b", "c"]
