"""The programs that use transformers run, and show what they say."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("peft")
EXAMPLES = Path(__file__).parent.parent.parent / "examples"


def test_the_trainer_learns_which_grammar_is_that_of_the_dev_set(
    capsys: pytest.CaptureFixture[str],
) -> None:
    runpy.run_path(str(EXAMPLES / "integrations" / "transformers_trainer.py"), run_name="__main__")
    shown = capsys.readouterr().out
    plain, learned = (float(x) for x in re.findall(r"evaluation (\d\.\d+)", shown))
    (line,) = re.findall(r"weights: .*", shown)
    same, other, none = (float(x) for x in re.findall(r"\d\.\d+", line))
    assert learned < 0.8 * plain
    assert same > 2 * max(other, none)


@pytest.mark.slow
def test_every_way_of_mixing_is_compared(capsys: pytest.CaptureFixture[str]) -> None:
    main = runpy.run_path(str(EXAMPLES / "data_mixing.py"))["main"]
    main(["--seeds", "1", "--steps", "4"])
    shown = capsys.readouterr().out
    for way in ("uniform", "dev domain only", "both together", "best static mixture", "LoRA"):
        assert re.search(rf"{way}.* \d\.\d+ ± inf", shown), way
    shares = re.findall(r"docstrings ([\d.]+), code ([\d.]+), random ([\d.]+)", shown)
    assert len(shares) == 3  # the best static one, and those that were learned
    for each in shares:
        assert sum(map(float, each)) == pytest.approx(1.0, abs=0.02)  # two decimals each
