"""Positions in an epoch as plain numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reweight.samplers._arguments import at_least, optional_size
from reweight.samplers.global_sizes import GlobalSizes
from reweight.samplers.segment import Samples, Segment

_DAMAGED = "the state is damaged: load another checkpoint"


def written(segment: Segment, position: int) -> dict[str, Any]:
    """Pair ``position`` of ``segment`` as numbers that :func:`read` understands.

    "sizes" has a row for each segment of the epoch so far, and "used" the number of pairs that were
    used of each but the last.
    """
    sizes = [list(segment.sizes)]
    used: list[int] = []
    while segment.previous is not None:
        segment, pairs = segment.previous
        sizes.insert(0, list(segment.sizes))
        used.insert(0, pairs)
    return {
        "epoch": segment.epoch,
        "position": position,
        "dev_start": segment.dev_start,
        "sizes": sizes,
        "used": used,
    }


def read(state: Mapping[str, Any], samples: Samples) -> tuple[Segment, int]:
    """The segment that a state is in, and the position in it.

    Args:
        state: what :func:`written` returned, and the sizes of the sampler, by which a state of
            version 0.1.0 is understood.
        samples: the samples and their orders.

    Raises:
        ValueError: a number is out of range.
        TypeError: a number is not an integer.
    """
    epoch = at_least(0, "state['epoch']", state["epoch"])
    position = at_least(0, "state['position']", state["position"])
    if "sizes" in state:
        start = at_least(0, "state['dev_start']", state["dev_start"])
        sizes, used = [_sizes(row) for row in state["sizes"]], list(state["used"])
    else:
        of_rank = (state[name] for name in ("batch_size", "dev_batch_size", "num_replicas"))
        sizes, used = [GlobalSizes.of_ranks(*of_rank)], []
        start = epoch * Segment(samples, sizes[0], 0, 0).dev_end
    if len(sizes) != len(used) + 1:
        raise ValueError(
            f"state['used'] has {len(used)} entries for {len(sizes)} of state['sizes'], not one "
            f"less; {_DAMAGED}"
        )
    segment = Segment(samples, sizes[0], epoch, start)
    for pairs, following in zip(used, sizes[1:], strict=True):
        _check("used", at_least(1, "state['used']", pairs), segment)
        segment = segment.rest(pairs, following)
    _check("position", position, segment)
    return segment, position


def _sizes(row: Any) -> GlobalSizes:
    try:
        batch, dev_batch, num_replicas = row
    except (TypeError, ValueError):
        raise ValueError(f"state['sizes'] holds {row!r}, not three numbers; {_DAMAGED}") from None
    num_replicas = at_least(1, "num_replicas in state['sizes']", num_replicas)
    batch = at_least(num_replicas, "the batch size in state['sizes']", batch)
    return GlobalSizes(batch, optional_size(dev_batch), num_replicas)


def _check(name: str, pairs: int, segment: Segment) -> None:
    if pairs >= segment.num_pairs:
        whole = "an epoch" if segment.previous is None else "what is left of the epoch"
        raise ValueError(
            f"state['{name}'] = {pairs}, but {whole} has {segment.num_pairs} pairs; {_DAMAGED}"
        )
