"""A batch that consists of batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False)
class MicroBatches:
    """The batches whose gradients one optimizer step accumulated.

    An outer step on them is the outer step on one batch of all their samples. Each is evaluated by
    itself, as in training, so they need not have the same shapes. Every sample counts alike, while
    accumulated means count every batch alike: the two are the same for batches of one size.

    Args:
        batches: at least one batch, each as ``losses`` takes it.
    """

    batches: Sequence[Any]
