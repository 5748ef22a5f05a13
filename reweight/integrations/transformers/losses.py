"""Losses of transformers' models before reduction: their own ``outputs.loss`` is one number.

With all weights 1, the mean of each is the model's own loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from reweight import Losses

Batch = Mapping[str, Any]
LossesFn = Callable[[Any, Batch, "Tensor | None"], "Losses | Tensor"]

IGNORED = -100  # the label of a token or a sample without a target


def causal_lm_losses(model: Any, batch: Batch, groups: Tensor | None = None) -> Losses:
    """One loss per sequence, for decoders that predict the next token.

    It is the sum over the tokens of the sequence, divided by the mean number of targets of the
    sequences in the batch, so that every token counts the same, as in the model's own loss. Where
    all sequences are of one length it is the mean over the sequence. Where they are not, a weighter
    that reads losses sees long sequences as ones of high loss:
    :func:`causal_lm_token_losses` suits it better.

    Args:
        model: returns ``logits [B, T, V]``.
        batch: the model's inputs; ``labels [B, T]``, -100 where there is no target, or
            ``shift_labels [B, T]``, which are shifted already.
        groups: what the weighter reads, one entry per sequence ``[B]``, such as the source's id.

    Returns:
        Losses ``[B]``.

    Raises:
        KeyError: the batch has no labels.
        ValueError: the logits have another length than the labels.
    """
    tokens, targets = _token_losses(model, batch)
    has_target = targets != IGNORED
    scale = len(targets) / has_target.sum().clamp(min=1)
    return Losses(tokens.sum(dim=1) * scale, inputs=groups)


def causal_lm_token_losses(model: Any, batch: Batch, groups: Tensor | None = None) -> Losses:
    """One loss per target token, so that each token has a weight of its own.

    Arguments and errors are those of :func:`causal_lm_losses`. The tokens of a sequence share its
    entry of ``groups``.

    Returns:
        Losses ``[N]`` of the ``N`` tokens that have a target, row by row.
    """
    tokens, targets = _token_losses(model, batch)
    has_target = targets != IGNORED
    if groups is not None:
        groups = groups[:, None].expand(has_target.shape)[has_target]
    return Losses(tokens[has_target], inputs=groups)


def sequence_classification_losses(
    model: Any, batch: Batch, groups: Tensor | None = None
) -> Losses:
    """One loss per sequence that has a label.

    Args:
        model: returns ``logits [B, C]``.
        batch: the model's inputs; ``labels``: classes ``[B]`` (int), values ``[B]`` with ``C = 1``
            (regression by squared errors), or 0 and 1 in ``[B, C]`` (float; several labels).
        groups: what the weighter reads, one entry per sequence ``[B]``.

    Returns:
        Losses ``[B]``.

    Raises:
        KeyError: the batch has no labels.
    """
    labels = _labels(batch)
    logits = _logits(model, batch)
    if logits.shape[-1] == 1:
        losses = (logits.squeeze(-1) - labels.reshape(-1)).square()
    elif labels.is_floating_point():
        losses = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(dim=1)
    else:
        losses = F.cross_entropy(logits, labels, reduction="none")
    return Losses(losses, inputs=groups)


def rows(batch: Batch) -> int:
    """The number of rows of a batch."""
    return next(len(x) for x in batch.values() if isinstance(x, Tensor) and x.ndim)


def num_targets(batch: Batch) -> Tensor:
    """The number of tokens that a decoder is to predict."""
    return (_targets(batch) != IGNORED).sum()


# The functions whose mean is the model's own loss, and what this is a mean over.
SHIPPED: dict[Any, Callable[[Batch], Tensor | int]] = {
    causal_lm_losses: num_targets,
    causal_lm_token_losses: num_targets,
    sequence_classification_losses: rows,
}


def num_losses(losses: LossesFn, batch: Batch) -> Tensor | int:
    """The number of losses of a batch: one per row, or one per token."""
    return num_targets(batch) if losses is causal_lm_token_losses else rows(batch)


def _token_losses(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """The losses ``[B, T]`` of tokens, 0 where there is no target, and the targets."""
    targets = _targets(batch)
    logits = _logits(model, batch)
    logits = logits if "shift_labels" in batch else logits[:, :-1]
    if logits.shape[:2] != targets.shape:
        raise ValueError(
            f"the model returned logits of shape {list(logits.shape)} for targets of shape "
            f"{list(targets.shape)}: it adds or merges tokens, as prompt tuning and image models "
            "do. Pass your own losses=(model, batch, groups) -> one loss per sequence"
        )
    losses = F.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), reduction="none", ignore_index=IGNORED
    )
    return losses.view(targets.shape), targets


def _targets(batch: Batch) -> Tensor:
    if "shift_labels" in batch:
        return _labels(batch, "shift_labels")
    return _labels(batch)[:, 1:]


def _labels(batch: Batch, key: str = "labels") -> Tensor:
    if key not in batch:
        raise KeyError(
            f"the batch has no labels, only {sorted(batch)}: add a column of labels to the data "
            "set, or pass a data collator that makes them, such as "
            "DataCollatorForLanguageModeling(tokenizer, mlm=False)"
        )
    labels: Tensor = batch[key]
    return labels


def _logits(model: Any, batch: Batch) -> Tensor:
    inputs = {k: v for k, v in batch.items() if k not in ("labels", "shift_labels")}
    logits: Tensor = model(**inputs).logits
    # Losses are computed in float32 at least, as in the models themselves.
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
