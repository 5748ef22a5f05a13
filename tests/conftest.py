"""What the whole suite shares: hypothesis profiles, one thread for torch, two processes."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from _support.processes import Processes

# Tensors are small here: threads would only wait for each other.
torch.set_num_threads(1)

# deadline=None: the first call in a test pays for torch's lazy set-up.
# derandomize=True: the same examples are tried every time, so that red means changed code.
settings.register_profile("quick", derandomize=True, deadline=None, max_examples=30)
settings.register_profile("ci", derandomize=True, deadline=None, max_examples=100)
settings.register_profile("dev", deadline=None, max_examples=20)
settings.register_profile("nightly", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

# With --doctest-modules pytest would import this file once more, under the name of cdr/conftest.py.
collect_ignore = ["conftest.py"]


@pytest.fixture(scope="session")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """Two processes that run functions together; they take seconds to start."""
    group = Processes(2, tmp_path_factory.mktemp("two"))
    yield group
    group.close()
