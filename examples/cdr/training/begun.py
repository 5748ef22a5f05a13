"""An epoch that is under way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cdr.common import Processes

OnStep = Callable[[int, int, int, float], None]
"""Called after a step with (epoch from 0, step in it, steps of an epoch, best AUC so far)."""


@dataclass
class Begun:
    """An epoch that is under way.

    Attributes:
        total: Sum of the losses so far, [].
        steps: How many they are.
    """

    total: Tensor
    steps: int = 0

    def state_dict(self, processes: Processes) -> dict[str, Any]:
        """The same, with the common stream of random numbers of each process."""
        streams = {"cpu": torch.get_rng_state()}
        if self.total.is_cuda:
            streams["cuda"] = torch.cuda.get_rng_state(self.total.device)
        random = {kind: processes.rows_of_all(s.unsqueeze(0)) for kind, s in streams.items()}
        # A copy: the next step adds to it, while a state may still be in use.
        return {"total": self.total.clone(), "steps": self.steps, "random": random}

    @classmethod
    def restored(
        cls, state: dict[str, Any], processes: Processes, device: torch.device, seed: int
    ) -> Begun:
        """The epoch of a state; other processes than those of the state draw other numbers.

        Args:
            state: From :meth:`state_dict`.
            processes: Those that go on.
            device: To train on.
            seed: For the random numbers of this process, where the state has none for it.
        """
        random: dict[str, list[Tensor]] = state["random"]
        if len(random["cpu"]) == processes.size and ("cuda" in random) == (device.type == "cuda"):
            torch.set_rng_state(random["cpu"][processes.rank][0])
            if "cuda" in random:
                torch.cuda.set_rng_state(random["cuda"][processes.rank][0], device)
        else:
            torch.manual_seed(seed)
        return cls(state["total"].to(device), state["steps"])


def epoch_seed(seed: int, epoch: int, rank: int) -> int:
    """Of what draws from torch's common stream in one epoch, in one of several processes."""
    (number,) = np.random.SeedSequence([seed, epoch, rank]).generate_state(1, np.uint64)
    return int(number)
