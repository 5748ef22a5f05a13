"""The example of RecBole finds who rates by coin flip, and gains from it."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

pytest.importorskip("recbole")
pytestmark = pytest.mark.filterwarnings("ignore:.*:FutureWarning", "ignore:not an exact")


@pytest.mark.slow
def test_learned_weights_find_the_coin_flips_and_help_a_new_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = import_module("integrations.recbole_loop").results(seed=0)
    auc, weights = found["learned, retrained"]
    assert weights is not None and weights > 0.9
    assert auc > found["plain"][0]
