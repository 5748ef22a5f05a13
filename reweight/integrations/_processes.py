"""Outer steps belong to one process."""

from __future__ import annotations

from torch import distributed


def check_one_process(announced: int) -> None:
    """Raise where several processes train one model.

    Each would differentiate its own share of the batch and learn another weighter, without a word.

    Args:
        announced: the number of processes that the training framework states.

    Raises:
        NotImplementedError: there are several, by its count or by torch's.
    """
    several = distributed.is_available() and distributed.is_initialized()
    size = max(announced, distributed.get_world_size() if several else 1)
    if size > 1:
        raise NotImplementedError(  # a RuntimeError too
            f"{size} processes train this model, and outer steps are made for one process: each "
            "process would learn weights of its own. Learn the weights with one process "
            "(devices=1 in Lightning, --num_processes 1 of accelerate launch), and train with the "
            "learned weights on many"
        )
