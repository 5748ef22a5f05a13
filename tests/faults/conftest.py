"""A small log of two domains."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "cdr"))

from scenarios import gappy_log, write_ratings  # noqa: E402


@pytest.fixture(scope="session")
def ratings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A csv file with the domains books and toys."""
    path = tmp_path_factory.mktemp("data") / "ratings.csv"
    write_ratings(path, *gappy_log())
    return path
