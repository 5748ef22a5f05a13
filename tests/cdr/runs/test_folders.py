"""The run folder: there when the run ended well, otherwise nothing."""

from __future__ import annotations

import json
import logging
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from cdr.common.jsonable import to_json, write_json
from cdr.runs.folders import run_folder
from cdr.runs.machine import environment


def test_it_appears_when_all_is_done(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "one"
    with run_folder(path) as folder:
        assert not path.exists() and folder.is_dir()
        (folder / "table.md").write_text("x")
        logging.getLogger("cdr").info("hello from %s", "cdr")
        logging.getLogger("reweight").info("hello from reweight")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("careful", stacklevel=1)
    assert sorted(os.listdir(tmp_path / "runs")) == ["one"]
    assert (path / "table.md").read_text() == "x"
    log = (path / "log.txt").read_text()
    assert "hello from cdr" in log and "hello from reweight" in log and "careful" in log


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_after_an_error(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), run_folder(tmp_path / "runs" / "today" / "one") as folder:
        (folder / "half").write_text("x")
        raise error
    assert os.listdir(tmp_path) == []


def test_folders_of_others_are_left_after_an_error(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    with pytest.raises(ValueError), run_folder(tmp_path / "runs" / "one"):
        raise ValueError
    assert os.listdir(tmp_path) == ["runs"]
    with pytest.raises(ValueError), run_folder(tmp_path / "new" / "one"):
        (tmp_path / "new" / "another").mkdir()
        raise ValueError
    assert os.listdir(tmp_path / "new") == ["another"]


def taken(path: Path, kind: str) -> None:
    if kind == "folder":
        path.mkdir()
    elif kind == "file":
        path.write_text("mine")
    else:
        path.symlink_to(path.parent / "nowhere")


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
@pytest.mark.parametrize("slash", ["", "/"])
def test_a_name_that_is_taken_is_refused(tmp_path: Path, kind: str, slash: str) -> None:
    taken(tmp_path / "one", kind)
    with (
        pytest.raises(FileExistsError, match="--out .*one exists"),
        run_folder(Path(f"{tmp_path}/one{slash}")),
    ):
        pytest.fail("the block ran")
    assert os.listdir(tmp_path) == ["one"]


def test_another_run_to_the_same_name_is_refused(tmp_path: Path) -> None:
    with run_folder(tmp_path / "one") as folder:
        (folder / "file").write_text("x")
        with (
            pytest.raises(FileExistsError, match="another run"),
            run_folder(tmp_path / "one"),
        ):
            pytest.fail("the block ran")
    assert (tmp_path / "one" / "file").exists()


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with (
        pytest.raises(OSError, match="--out .*file/one"),
        run_folder(tmp_path / "file" / "one"),
    ):
        pytest.fail("the block ran")


def test_results_are_kept_where_the_name_was_taken_meanwhile(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match=r"one\.partial"),
        run_folder(tmp_path / "one") as folder,
    ):
        (folder / "result").write_text("x")
        (tmp_path / "one").mkdir()
        (tmp_path / "one" / "other").write_text("y")
    assert (tmp_path / "one.partial" / "result").read_text() == "x"
    assert os.listdir(tmp_path / "one") == ["other"]


def test_loggers_are_as_before(tmp_path: Path) -> None:
    def handlers() -> list[logging.Handler]:
        return [
            h for n in ("cdr", "reweight", "py.warnings") for h in logging.getLogger(n).handlers
        ]

    before, show = handlers(), warnings.showwarning
    with run_folder(tmp_path / "one"):
        pass
    with pytest.raises(ValueError), run_folder(tmp_path / "two"):
        raise ValueError
    assert handlers() == before and warnings.showwarning is show


@dataclass
class _Config:
    path: Path
    widths: tuple[int, ...]
    rate: float | None = None


def test_json_holds_what_runs_consist_of(tmp_path: Path) -> None:
    value = {
        "config": _Config(Path("a/b"), (1, 2)),
        "number": np.float32(0.5),
        "array": np.arange(3),
        "missing": float("nan"),
        "huge": [float("inf")],
        3: "é",
    }
    write_json(tmp_path / "x.json", value)
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert text.endswith("}\n") and "é" in text
    assert (
        json.loads(text)
        == json.loads(to_json(value))
        == {
            "config": {"path": "a/b", "widths": [1, 2], "rate": None},
            "number": 0.5,
            "array": [0, 1, 2],
            "missing": None,
            "huge": [None],
            "3": "é",
        }
    )


def test_the_environment_names_versions() -> None:
    found = environment("cpu")
    assert found["device"] == "cpu" and found["packages"]["torch"] and found["python"]
    json.loads(to_json(found))
