"""Small scenarios of two domains: one generated, one with every gap that real logs have."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scenarios import NUM_USERS, gappy_log, write_ratings

from cdr.data import Behaviors, CrossDomainData, Interactions, build, generate
from cdr.training import Result, epochs


@pytest.fixture(scope="session")
def tiny() -> CrossDomainData:
    """Generated data with true flags: 60 users, some 950 source and 250 training behaviours."""
    return generate(num_users=NUM_USERS, num_source_items=200, num_target_items=100)


@pytest.fixture(scope="session")
def gappy() -> CrossDomainData:
    """What `gappy_log` gives."""
    return build(
        "gappy",
        *(
            Interactions(
                log["user"], log["item"], log["rating"] > 3, log["timestamp"].astype(float)
            )
            for log in gappy_log()
        ),
    )


@pytest.fixture(scope="session")
def ratings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a csv file with the domains books and toys."""
    path = tmp_path_factory.mktemp("data") / "ratings.csv"
    write_ratings(path, *gappy_log())
    return path


@pytest.fixture
def double(tiny: CrossDomainData) -> Iterator[CrossDomainData]:
    """The tiny data, for models in float64."""

    def doubled(rows: Behaviors) -> Behaviors:
        # Beside float32 labels a loss of float64 logits is rounded to float32 on its way.
        return replace(rows, label=rows.label.double())

    names = ("source", "train", "valid", "test", "extra_test")
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield replace(tiny, **{name: doubled(getattr(tiny, name)) for name in names})
    torch.set_default_dtype(before)


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The variants of single models that were trained in this process."""
    done: list[str] = []

    def train(variant: str, *arguments: Any, **told: Any) -> Result:
        done.append(variant)
        return alone(variant, *arguments, **told)

    alone = epochs.train
    monkeypatch.setattr(epochs, "train", train)
    return done
