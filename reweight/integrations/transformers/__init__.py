"""Learned weights inside the ``Trainer`` of transformers, and inside trainers derived from it.

:class:`ReweightTrainer` is a ``Trainer`` that learns weights. As the first base class it gives the
same to another one, such as TRL's::

    class ReweightSFTTrainer(ReweightTrainer, SFTTrainer): ...
"""

from __future__ import annotations

from reweight.integrations.transformers.losses import (
    causal_lm_losses,
    causal_lm_token_losses,
    sequence_classification_losses,
)
from reweight.integrations.transformers.trainer import OuterArguments, ReweightTrainer

__all__ = [
    "OuterArguments",
    "ReweightTrainer",
    "causal_lm_losses",
    "causal_lm_token_losses",
    "sequence_classification_losses",
]
