"""Checks of modules and parameters, when they are passed to ``wrap`` and at every outer step."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from reweight._sharded import is_sharded, refuse_other_engines
from reweight._tensors import some


def check_optimizers(
    model: nn.Module, optimizers: Sequence[Optimizer], theta: Mapping[str, Tensor]
) -> None:
    """Raise where optimizers hold nothing of a model, as those of another model do."""
    if not optimizers:
        return
    own = dict(model.named_parameters())
    inner = {id(p) for p in theta.values()}
    if own and not any(id(p) in inner for p in own.values()):
        raise ValueError(
            f"the optimizer does not hold and move any of the model's {len(own)} parameters "
            f"({some(own)}): it was built from another model, or before parameters were replaced"
        )


def check_batch(name: str, batch: Any) -> None:
    """Raise for a batch that can be read only once."""
    if isinstance(batch, Iterator):
        raise TypeError(
            f"{name} is a {type(batch).__name__}, which can be read once, and an outer step "
            f"evaluates the losses several times: pass tuple({name}), or next(...) of a loader"
        )


def check_memory(theta: Mapping[str, Tensor]) -> None:
    """Raise where two inner parameters are the same memory, and so one parameter in truth."""
    spans = sorted(
        (p.data_ptr(), p.data_ptr() + p.numel() * p.element_size(), name)
        for name, p in theta.items()
        if type(p.data) is Tensor and p.layout is torch.strided and p.numel() and p.is_contiguous()
    )
    for (_, end, name), (start, _, other) in zip(spans, spans[1:], strict=False):
        if start < end:
            raise ValueError(
                f"{name} and {other} are two parameters that share memory, as after "
                "a.weight.data = b.weight.data: each step of one moves the other, and neither has "
                "a gradient of its own. Tie them as one parameter, a.weight = b.weight"
            )


def check_modules(model: nn.Module) -> None:
    """Raise for modules whose parameters can't be substituted or whose gradients are modified."""
    refuse_other_engines(list(model.modules()))
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError(
                f"{name or 'model'} is a TorchScript module, whose parameters can't be "
                "substituted: pass the module that it was made from"
            )
        if not isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            continue
        for option in ("max_norm", "scale_grad_by_freq"):
            if getattr(module, option):
                raise ValueError(
                    f"{name or 'model'} = {type(module).__name__}({option}="
                    f"{getattr(module, option)}): its gradients are not those of the loss, so "
                    "there is no hypergradient. Leave the option off; a penalty in the loss or "
                    "weight decay bounds the norms as well"
                )


def check_parameters(
    model: nn.Module,
    weighter: nn.Module,
    theta: Mapping[str, Tensor],
    phi: Mapping[str, Tensor],
    served: Container[int],
) -> None:
    """Raise unless there are real inner parameters and weighter parameters, and none is both.

    ``served`` holds the ``id`` of each sharded parameter that outer steps can work with.
    """
    if not theta:
        raise ValueError(
            "there are no inner parameters: every parameter of the model is frozen, or "
            f"inner_params matches none of {[n for n, _ in model.named_parameters()][:5]}"
        )
    if not phi:
        raise ValueError(
            f"the weighter {type(weighter).__name__} has no trainable parameters: there is "
            "nothing for the outer problem to learn"
        )
    for name, p in (*theta.items(), *phi.items()):
        if is_sharded(p) and not (name in theta and id(p) in served):
            raise TypeError(
                f"{name} is sharded over processes (a {type(p).__name__}), and is not a parameter "
                "of the model that fully_shard or RowwiseParallel sharded: leave it whole in each "
                "process, as the weighter's parameters have to be"
            )
        if not p.is_floating_point():
            raise TypeError(
                f"{name} is complex: hypergradients are of real parameters. Keep its real and "
                "imaginary parts, torch.view_as_real(...), as the parameter and make the complex "
                "tensor in forward"
            )
    inner = {id(p): name for name, p in theta.items()}
    for name, p in phi.items():
        if id(p) in inner:
            raise ValueError(
                f"the weighter's {name} is the model's {inner[id(p)]}: weights must not depend on "
                "inner parameters. Pass what the weighter needs of the model as "
                "Losses(inputs=...), which are detached"
            )
