"""The example of RecBole finds who rates by coin flip."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

pytest.importorskip("recbole")
pytestmark = pytest.mark.filterwarnings("ignore:.*:FutureWarning", "ignore:not an exact")


def test_each_way_to_train_meets_the_same_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    example = import_module("integrations.recbole_loop")
    example.write_ratings(tmp_path, seed=0)
    data = example.Data("apart", tmp_path, seed=0)
    orders = []
    for _ in range(2):
        data.model()
        orders.append(next(iter(data.train))["item_id"].tolist())
    assert orders[0] == orders[1]


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
