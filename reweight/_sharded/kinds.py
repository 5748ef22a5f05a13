"""How parameters are spread over processes, told by their types and by the hooks of their modules.

Nothing is imported for it: the modules of torch that shard take seconds to import, and a model that
holds no sharded parameter does not need them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeGuard

from torch import Tensor, nn

FSDP = ("torch.distributed.fsdp", "torch.distributed._composable.fsdp")
TENSOR_PARALLEL = ("torch.distributed.tensor", "torch.distributed._tensor")


def is_sharded(x: Any) -> TypeGuard[Tensor]:
    """Whether a tensor is a ``DTensor``: a part of it lies in each of several processes."""
    return hasattr(x, "device_mesh")


def is_from(function: Any, packages: tuple[str, ...]) -> bool:
    """Whether a function, such as a hook, was made by one of some packages."""
    # functools.wraps copies __module__; the globals of a wrapper are its own.
    own = getattr(getattr(function, "__func__", function), "__globals__", {}).get("__name__")
    modules = (own, getattr(function, "__module__", None))
    return any(isinstance(m, str) and m.startswith(packages) for m in modules)


def hooks_of(part: nn.Module) -> list[Any]:
    """The forward hooks of a module itself."""
    return [*part._forward_pre_hooks.values(), *part._forward_hooks.values()]


def is_fully_sharded(part: nn.Module) -> bool:
    """Whether ``fully_shard`` (FSDP2) was applied to a module itself."""
    return _descends(part, "FSDPModule", ("torch.distributed.",))


def managed_by_fsdp(parts: Iterable[nn.Module]) -> set[int]:
    """The ``id`` of every module in which ``fully_shard`` may have sharded parameters."""
    roots = [part for part in parts if is_fully_sharded(part)]
    return {id(part) for root in roots for part in root.modules()}


def is_row_sharded(part: nn.Embedding) -> bool:
    """Whether each process has some rows of the table of an embedding.

    ``RowwiseParallel`` makes such tables. Tables that are also sharded along another dimension, or
    twice along the rows, are not among them.
    """
    if not any(is_from(hook, TENSOR_PARALLEL) for hook in hooks_of(part)):
        return False
    weight: Any = part._parameters["weight"]
    split = [p for p in weight.placements if type(p).__name__ != "Replicate"]
    return len(split) == 1 and type(split[0]).__name__ == "Shard" and split[0].dim == 0


def refuse_other_engines(parts: Sequence[nn.Module]) -> None:
    """Raise for models that another engine spreads over processes, in ways not supported.

    Raises:
        TypeError: FSDP1, DeepSpeed ZeRO-3, tables of TorchRec, pipeline stages.
    """
    for part in parts:
        name = type(part).__name__
        if _descends(part, "FullyShardedDataParallel", FSDP):
            raise TypeError(
                f"the model has a {name}: this wrapper (FSDP1) keeps flat parameters, whose names, "
                "weight decay and second moments outer steps can't read. Use fully_shard(model) "
                "(FSDP2), or wrap the model whole in each process"
            )
        if _descends(part, "", ("torchrec.distributed.",)):
            raise TypeError(
                f"the model has a {name} of TorchRec: autograd gives no gradients for its tables, "
                "which are updated inside of its backward pass. Keep the tables as nn.Embedding, "
                "sharded by rows where they are large: parallelize_module(model, mesh, "
                '{"table": RowwiseParallel(input_layouts=Replicate())})'
            )
        if _descends(part, "", ("torch.distributed.pipelining.",)):
            raise TypeError(
                f"the model is a {name} of torch.distributed.pipelining: each process has some of "
                "its layers, and no process can evaluate the losses. Use fully_shard(model), which "
                "makes shards of the parameters and leaves the layers together"
            )
        for key, p in part._parameters.items():
            if hasattr(p, "ds_id"):
                raise TypeError(
                    f"{key} of {name} is a parameter of DeepSpeed ZeRO-3, which is empty outside "
                    "of its own passes. Use ZeRO stage 1 or 2, or fully_shard(model), which shards "
                    "as ZeRO-3 does"
                )


def _descends(part: nn.Module, name: str, packages: tuple[str, ...]) -> bool:
    """Whether a class of some name (any where ``""``) of some packages is among the bases."""
    return any(
        name in ("", cls.__name__) and cls.__module__.startswith(packages)
        for cls in type(part).__mro__
    )
