"""Arguments and settings that the trainer cannot honour."""

from __future__ import annotations

from typing import Any

import reweight

LOOKUPS = reweight.GroupWeighter, reweight.TableWeighter  # they read ids


def check_arguments(weighter: Any, dev_dataset: Any, group_column: Any, weight_column: Any) -> None:
    """Raise for arguments that contradict each other."""
    if (weighter is None) == (weight_column is None):
        raise ValueError(
            "pass a weighter, which learns the weights, or weight_column, which holds them: got "
            f"weighter={weighter!r}, weight_column={weight_column!r}"
        )
    if weighter is None and (dev_dataset is not None or group_column is not None):
        raise ValueError(
            "dev_dataset and group_column are for a weighter: the weights of weight_column are "
            "not learned"
        )
    if weighter is not None and dev_dataset is None:
        raise ValueError(
            "dev_dataset is missing: the weighter learns which samples reduce the loss there"
        )
    if isinstance(weighter, LOOKUPS) and group_column is None:
        raise ValueError(
            f"group_column is missing: {type(weighter).__name__} looks the weights up by the ids "
            "of a column of train_dataset, numbered from 0"
        )


def check_trainer(trainer: Any) -> None:
    """Raise for settings of a Trainer under which its weights would be wrong or ignored."""
    args = trainer.args
    if args.n_gpu > 1:
        raise NotImplementedError(
            f"ReweightTrainer runs on one GPU of each process, and the Trainer would put copies of "
            f"the model on {args.n_gpu}: start a process for each GPU (torchrun --nproc-per-node "
            f"{args.n_gpu}), or set CUDA_VISIBLE_DEVICES to one GPU"
        )
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        raise NotImplementedError(
            "ReweightTrainer differentiates the model's own parameters, which DeepSpeed and FSDP "
            "shard: train without them, with LoRA if memory is short"
        )
    if trainer.label_smoother is not None or trainer.compute_loss_func is not None:
        raise ValueError(
            "label_smoothing_factor and compute_loss_func would be ignored: the training loss is "
            "the weighted mean of losses. Pass losses=(model, batch, groups) -> Losses"
        )
