"""Data-parallel training: a wrapper averages the gradients, outer steps use the module inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel

from reweight._tensors import uninterrupted
from reweight.wrapping import Reweighted

T = TypeVar("T")


def data_parallel(model: Any, announced: int) -> DistributedDataParallel | None:
    """The wrapper that averages the gradients of several processes; ``None`` where there is one.

    Args:
        model: what the training framework made of the model.
        announced: the number of processes that the framework states.

    Raises:
        NotImplementedError: several processes train the model in another way.
    """
    size = max(announced, distributed.get_world_size() if _initialized() else 1)
    if size < 2:
        return None
    model = getattr(model, "_orig_mod", model)  # torch.compile around the wrapper
    if isinstance(model, DistributedDataParallel):
        return model
    raise NotImplementedError(  # a RuntimeError too
        f"{size} processes train this model as a {type(model).__name__}, and the integrations "
        "serve several processes with DistributedDataParallel only: FSDP, DeepSpeed and tensor "
        "parallelism shard the parameters that outer steps differentiate, and without a wrapper "
        "nobody averages the gradients. Use data parallelism (strategy='ddp' in Lightning; "
        "accelerator.prepare(model) of an accelerate launch without plugins; torchrun with the "
        "Trainer of transformers, without fsdp= and deepspeed=), with LoRA if memory is short"
    )


@uninterrupted
def through(
    parallel: DistributedDataParallel | None, loss: Callable[[Any], Tensor], batch: Any
) -> Tensor:
    """``loss(batch)``, computed inside the forward pass of a wrapper.

    A wrapper averages the gradients of its own passes only, while ``loss`` uses the module inside.
    """
    if parallel is None:
        return loss(batch)
    inner = parallel.module
    own = vars(inner).get("forward")

    def restore() -> None:
        vars(inner).pop("forward", None)
        if own is not None:
            vars(inner)["forward"] = own

    def once(batch: Any) -> Tensor:
        restore()
        return loss(batch)

    vars(inner)["forward"] = once
    try:
        found: Tensor = parallel(batch)
    finally:
        restore()
    return found


def of_first(value: T) -> T:
    """What the first process holds."""
    if not _initialized() or distributed.get_world_size() < 2:
        return value
    values = [value]
    distributed.broadcast_object_list(values)
    return values[0]


def mean_of_all(reweighted: Reweighted, x: Tensor) -> float:
    """The mean over the samples of all processes, which all have to ask for."""
    ranks = reweighted.problem.ranks
    if ranks is None:
        return float(x.mean())
    with ranks.together():
        sums, counts = zip(*ranks.numbers(float(x.sum()), len(x)), strict=True)
    mean: float = sum(sums) / max(sum(counts), 1.0)
    return mean


def _initialized() -> bool:
    return distributed.is_available() and distributed.is_initialized()
