"""The weighter of a training and its optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from cdr.common import refuse
from cdr.data import CrossDomainData
from cdr.training.options import Options, OuterOptions
from reweight import (
    BehavioralPerceptron,
    ConstantWeighter,
    GroupWeighter,
    LossWeighter,
    SampleWeighter,
)

# What multiplies all weights alike.
_SCALES = ("raw_gamma", "raw_scale")


@dataclass
class Weighing:
    """A weighter with its optimizer, of one training or of several.

    Attributes:
        weighter: On the device of the data.
        optimizer: Of its parameters.
        clip: Largest norm of the hypergradient; None: as it is.
        moved: Whether the weighter is not as it began.
    """

    weighter: SampleWeighter
    optimizer: torch.optim.Optimizer
    clip: float | None
    moved: bool = False

    @classmethod
    def begin(
        cls, data: CrossDomainData, options: Options, *, learn_scale: bool = True
    ) -> Weighing:
        """A new one, drawn from torch's common stream.

        Args:
            data: On the device to train on.
            options: ``options.outer`` and ``options.perceptron`` say which.
            learn_scale: Whether the factor that all weights have in common is learned too.

        Raises:
            ValueError: A weighter that has nothing else.
        """
        if options.outer.weighter == "constant" and not learn_scale:
            refuse(
                "outer",
                "weighter",
                options.outer.weighter,
                "cross-fitting compares source behaviours with each other, which one γ for all "
                "does not; take another weighter",
            )
        weighter = _weighter(data, options).to(data.source_offsets.device)
        for name in _SCALES if not learn_scale else ():
            if (scale := getattr(weighter, name, None)) is not None:
                scale.requires_grad_(False)
        return cls(weighter, _optimizer(weighter, options.outer), options.outer.clip)

    def step(self) -> None:
        """One step along the hypergradient in ``.grad``."""
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.weighter.parameters(), self.clip)
        self.optimizer.step()
        self.moved = True


def _optimizer(weighter: SampleWeighter, options: OuterOptions) -> torch.optim.Optimizer:
    kinds: dict[str, type[torch.optim.Adam] | type[torch.optim.SGD]]
    kinds = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in weighter.named_parameters():
        if not parameter.requires_grad:
            continue
        free = name == "raw_gamma" and not options.decay_gamma
        (kept if free else decayed).append(parameter)
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": kept, "weight_decay": 0.0}]
    kind = kinds[options.optimizer]
    return kind(groups, lr=options.lr, weight_decay=options.weight_decay)


def _weighter(data: CrossDomainData, options: Options) -> SampleWeighter:
    kind, perceptron = options.outer.weighter, options.perceptron
    if kind == "loss":
        # The scale balances the source's losses against the target's, which are fixed.
        return LossWeighter(learn_scale=True)
    if kind == "group":
        # One group more: the pad of users without source behaviours.
        return GroupWeighter(data.source_items.num_categories + 1, learn_scale=True)
    if kind == "constant":
        return ConstantWeighter()
    return BehavioralPerceptron(
        2 * options.model.dim + perceptron.fact_columns,
        num_heads=perceptron.heads,
        global_hidden=perceptron.global_hidden,
        local_hidden=perceptron.local_hidden,
        use_global=perceptron.global_branch,
        use_local=perceptron.local_branch,
        normalization=perceptron.normalization,
        global_bias=perceptron.global_bias,
        mask_keys=perceptron.mask_keys,
        gamma_map=perceptron.gamma_map,
    )
