"""What ``import reweight`` loads, and that what it leaves for later is there when it is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import reweight

ROOT = Path(__file__).parent.parent

LOADED = """
import sys
import numpy, torch
before = set(sys.modules)
import reweight
print(*sorted(set(sys.modules) - before))
"""


def in_a_new_process(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout


@pytest.fixture(scope="module")
def loaded() -> list[str]:
    """The modules that ``import reweight`` adds to those of torch and numpy."""
    return in_a_new_process(LOADED).split()


def test_the_import_adds_hardly_a_module_to_those_of_torch_and_numpy(loaded: list[str]) -> None:
    # Time is not measured: another process on the machine would change it. Only graphlib is neither
    # of torch nor of numpy, nor in the library; one that loads others shows here.
    assert "reweight" in loaded
    assert {name for name in loaded if name.partition(".")[0] != "reweight"} <= {"graphlib"}


@pytest.mark.parametrize("part", ["checking", "diagnostics", "integrations"])
def test_the_import_leaves_for_later_what_no_training_needs(loaded: list[str], part: str) -> None:
    assert not [name for name in loaded if name.startswith(f"reweight.{part}")]


@pytest.mark.slow
def test_what_is_left_for_later_is_there_when_it_is_named() -> None:
    code = "import reweight; print(reweight.check_hypergradient.__module__)"
    assert in_a_new_process(code).strip() == "reweight.checking.check"
    code = "import reweight; print(reweight.diagnostics.Recorder, reweight.checking.CheckReport)"
    assert "Recorder" in in_a_new_process(code)
    code = "from reweight import *; print(check_hypergradient, diagnostics, wrap)"
    assert "check_hypergradient" in in_a_new_process(code)


def test_a_listing_shows_every_public_name_before_it_is_loaded() -> None:
    shown = in_a_new_process("import reweight; print(*dir(reweight))").split()
    assert set(reweight.__all__) <= set(shown)


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'reweight'.*'warp'"):
        reweight.warp  # noqa: B018
