"""Settings of the whole suite: hypothesis profiles and one thread for torch."""

from __future__ import annotations

import os

import torch
from hypothesis import settings

# Tensors are small here: threads would only wait for each other.
torch.set_num_threads(1)

# deadline=None: the first call in a test pays for torch's lazy set-up.
# derandomize=True: "ci" tries the same examples every time, so that red means changed code.
settings.register_profile("ci", derandomize=True, deadline=None, max_examples=100)
settings.register_profile("dev", deadline=None, max_examples=20)
settings.register_profile("nightly", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# With --doctest-modules pytest would import this file once more, under the name of cdr/conftest.py.
collect_ignore = ["conftest.py"]
