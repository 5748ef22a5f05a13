"""Small scenarios of two domains: one generated, one with every gap that real logs have."""

from __future__ import annotations

from pathlib import Path

import pytest
from scenarios import NUM_USERS, gappy_log, write_ratings

from cdr.data import CrossDomainData, Interactions, build, generate


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
