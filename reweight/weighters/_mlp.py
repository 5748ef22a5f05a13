"""The multi-layer perceptrons inside the weighters."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def mlp(
    in_features: int, hidden: Sequence[int], *, zero_last: bool, last_bias: bool = True
) -> nn.Sequential:
    """Linear layers with ReLU in between and one output.

    Args:
        in_features: Width of the input.
        hidden: Widths of the hidden layers; empty for a single linear layer.
        zero_last: Initialize the last layer to zero, so that the output starts at exactly 0.
        last_bias: Whether the last layer has a bias.

    Returns:
        A module that maps [..., in_features] to [..., 1].
    """
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise((in_features, *hidden)):
        layers += [nn.Linear(width_in, width_out), nn.ReLU()]
    last = nn.Linear(hidden[-1] if hidden else in_features, 1, bias=last_bias)
    if zero_last:
        nn.init.zeros_(last.weight)
        if last_bias:
            nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, last)
