"""The small examples run, and show what they say."""

from __future__ import annotations

import re
from pathlib import Path

import noisy_labels
import pytest


def test_noisy_labels_learns_which_labels_to_believe(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    noisy_labels.main(["--plot", str(tmp_path / "steps.png")])
    assert (tmp_path / "steps.png").stat().st_size > 10_000
    shown = capsys.readouterr().out
    plain, learned = (float(x) for x in re.findall(r"accuracy (\d\.\d+)", shown))
    right, wrong = (float(x) for x in re.findall(r"labels (\d\.\d+)", shown))
    assert learned > plain + 0.2
    assert right > 1.5 and wrong < 0.2
