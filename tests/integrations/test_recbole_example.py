"""The example of RecBole finds who rates by coin flip."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

pytest.importorskip("recbole")
pytestmark = pytest.mark.filterwarnings("ignore:.*:FutureWarning", "ignore:not an exact")


@pytest.mark.slow
def test_learned_weights_find_who_rates_by_coin_flip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    example = import_module("integrations.recbole_loop")
    monkeypatch.setattr(example, "EPOCHS", 2)  # those in which weights are learned
    found = example.results(seed=0)
    _, weights = found["learned weights"]
    assert weights is not None and weights > 0.9
