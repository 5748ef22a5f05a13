"""Checks of the arguments of ``wrap``: each error shows the line to write."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from reweight.losses import Losses
from reweight.weighters import SampleWeighter

_LOSSES = "losses=lambda model, batch: ..., which returns one loss per sample"
_OUTER_LOSS = "outer_loss=lambda model, batch: ..., which returns one number"


def check_arguments(
    model: Any, weighter: Any, losses: Any, outer_loss: Any, optimizer: Any, inner_params: Any
) -> None:
    """Raise TypeError for an argument of the wrong kind."""
    for name, module in (("model", model), ("weighter", weighter)):
        _check_module(name, module)
    if isinstance(model, SampleWeighter) and not isinstance(weighter, SampleWeighter):
        raise TypeError(
            f"model is a weighter, {type(model).__name__}, and weighter is a "
            f"{type(weighter).__name__}: they are swapped. Write wrap(model, weighter, losses, ...)"
        )
    if optimizer is not None:
        as_optimizers(optimizer)
    _check_function("losses", losses, "(model, batch)", _LOSSES)
    _check_function("outer_loss", outer_loss, "(model, batch)", _OUTER_LOSS)
    _check_function("inner_params", inner_params, "(name)", "inner_params=lambda name: ...")
    if losses is None and not callable(getattr(model, "losses", None)):
        raise TypeError(
            f"losses is missing and {type(model).__name__} has no method losses(batch): pass "
            f"{_LOSSES}"
        )


def _check_module(name: str, module: Any) -> None:
    if isinstance(module, nn.Module):
        return
    if isinstance(module, type) and issubclass(module, nn.Module):
        raise TypeError(
            f"{name} is the class {module.__name__} and not an instance of it: write "
            f"{_called(module)}"
        )
    hint = ""
    if name == "weighter" and callable(module):
        hint = (
            ": a weighter holds the parameters that are learned. Subclass reweight.SampleWeighter, "
            "or write LossWeighter()"
        )
    raise TypeError(f"{name} must be a torch.nn.Module, got {type(module).__name__}{hint}")


def as_optimizers(given: Any) -> tuple[Optimizer, ...]:
    """One optimizer or several, as a tuple.

    Raises:
        TypeError: anything else.
    """
    several = given if isinstance(given, (list, tuple, set)) else (given,)
    for optimizer in several:
        _check_optimizer(optimizer)
    return tuple(several)


def _check_optimizer(optimizer: Any) -> None:
    if isinstance(optimizer, Optimizer):
        return
    if isinstance(optimizer, type):
        raise TypeError(
            f"optimizer is the class {optimizer.__name__}: pass the instance that your loop steps, "
            f"optimizer = {optimizer.__name__}(model.parameters(), lr=...)"
        )
    if isinstance(getattr(optimizer, "optimizer", None), Optimizer):
        raise TypeError(
            f"optimizer is a {type(optimizer).__name__}: pass the optimizer that it holds, "
            "optimizer=scheduler.optimizer"
        )
    raise TypeError(
        f"optimizer must be a torch.optim.Optimizer or a list of them, got "
        f"{type(optimizer).__name__}: pass what your loop steps"
    )


def _check_function(name: str, function: Any, takes: str, write: str) -> None:
    """Raise unless the argument is a function of ``takes``, or left out."""
    if isinstance(function, (Tensor, Losses)):
        got = f"a tensor of shape {tuple(function.shape)}" if isinstance(function, Tensor) else ""
        raise TypeError(
            f"{name} is {got or 'a Losses'}, the result for one batch: pass the function that "
            f"computes it, without calling it, {name}={name} or {write}"
        )
    # Losses of torch take (input, target); they are called from a function of the user's.
    module = getattr(function, "__module__", None) or ""
    if isinstance(function, type) or module.startswith("torch.nn."):
        called = getattr(function, "__name__", type(function).__name__)
        raise TypeError(
            f"{name} is {called}, which is no function of {takes}: call it in one, as in {write}"
        )
    if function is not None and not callable(function):
        raise TypeError(
            f"{name} must be a function of {takes}, got {type(function).__name__}: write {write}"
        )


def _called(cls: type) -> str:
    """The class as it is called, with the arguments that it needs."""
    try:
        parameters = list(inspect.signature(cls).parameters.values())
    except (TypeError, ValueError):
        return f"{cls.__name__}(...)"
    needed = [
        f"{p.name}=..."
        for p in parameters
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    return f"{cls.__name__}({', '.join(needed)})"
