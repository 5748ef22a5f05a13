"""The outcome of a training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdr.training.evaluation import Scores


@dataclass
class Result:
    """The outcome of one training.

    Attributes:
        test: scores of the checkpoint on the test rows.
        extra_test: the same on a generator's further test rows.
        history: one record per epoch.
        state: the checkpoint, of the best epoch or, for a search, of the last one.
        weights: learned weight per source behaviour, where weights are learned.
        weight_auc: AUC of learned weight, also where it is only used, against the true flag, where
            there is one.
        seconds: from the start of the training to here, of all that is trained in common steps.
        restarted: Whether it is the second one, since the first has told no rows apart; see
            :meth:`Training.again`.
        valid: scores of the checkpoint on the validation rows.
        note: What is to be told of how the weights were found; "" for nothing.
        kept: The training chosen of several by validation rows, by its name there; None where there
            was nothing to choose.
    """

    test: Scores
    extra_test: Scores | None
    history: list[dict[str, float]]
    state: dict[str, Any]
    weights: NDArray[np.float32] | None = None
    weight_auc: float | None = None
    outer: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    restarted: bool = False
    note: str = ""
    kept: str | None = None
    valid: Scores | None = None

    @property
    def best(self) -> float:
        """The highest validation AUC of all epochs."""
        return max(record["auc"] for record in self.history)

    @property
    def scores(self) -> Scores:
        """Scores on the rows that tables are made from: the further test rows if there are some."""
        return self.test if self.extra_test is None else self.extra_test
