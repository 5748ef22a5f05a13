"""The behavioral perceptron where several processes share a batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cdr.common import Processes
from reweight import BehavioralPerceptron


class SharedPerceptron(BehavioralPerceptron):
    """A perceptron whose σ compares a behaviour with the batch of all processes.

    "centered" and "softmax" give weights that depend on the batch. By the share of one process
    alone they would be other weights than those of one process with the whole batch.

    Every call of :meth:`normalize` communicates, so all processes have to make it. So does its
    backward pass: the weights of all depend on the scores of each.

    Args:
        processes: Those that share the batch.
        arguments: Of the perceptron.
    """

    def __init__(self, processes: Processes, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._processes = processes

    def normalize(self, scores: Tensor) -> Tensor:
        """The weights [B] of this process's behaviours from their scores [B]."""
        together, count = self._processes, scores.new_tensor([float(len(scores))])
        if self.normalization == "centered":
            # One message: the sum and the count.
            total = together.differentiable_total(torch.cat([scores.sum().reshape(1), count]))
            return self.gamma * 2.0 * (scores - total[0] / total[1]).sigmoid()
        if self.normalization == "softmax":
            # Any shift gives the same weights; the largest score keeps the exponentials finite.
            powers = (scores - together.largest(scores.max().reshape(1))).exp()
            total = together.differentiable_total(torch.cat([powers.sum().reshape(1), count]))
            return self.gamma * total[1] * powers / total[0]
        return super().normalize(scores)
