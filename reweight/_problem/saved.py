"""What a saved state of a wrapped model is of, so that no other problem loads it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.nn.parameter import is_lazy

from reweight._problem.bilevel import BilevelProblem
from reweight._tensors import some

Shapes = dict[str, "list[int] | None"]

# By these names wrappers hold the module that they wrap: data parallelism, torch.compile,
# activation checkpointing, fully sharded data parallelism. A run may be resumed without them.
_WRAPPERS = {"module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}


def record(problem: BilevelProblem) -> dict[str, Any]:
    """The class of the weighter, and names and shapes of all parameters, in plain values."""
    return {
        "weighter": type(problem.weighter).__qualname__,
        "weighter_parameters": _shapes(problem.weighter.named_parameters()),
        "model_parameters": _shapes(problem.model.named_parameters()),
    }


def refuse_another(problem: BilevelProblem, of: Mapping[str, Any]) -> None:
    """Raise if a record is not that of this problem.

    Args:
        problem: the one that is to load a state.
        of: what :func:`record` returned when it was saved.

    Raises:
        ValueError: they differ, with what differs by name.
    """
    own = record(problem)
    if of["weighter"] != own["weighter"]:
        raise ValueError(
            f"the state is of a {of['weighter']}, and this weighter is a {own['weighter']}: wrap "
            "the weighter that was saved, or if that one only had another name then, call "
            "rw.weighter.load_state_dict(state['weighter'])"
        )
    for key, what, move in (
        ("weighter_parameters", "weighter", "build it as it was when it was saved"),
        (
            "model_parameters",
            "model",
            "wrap the model that was saved, or to use the learned weights with another one, call "
            "rw.weighter.load_state_dict(state['weighter'])",
        ),
    ):
        if differing := _differing(of[key], own[key]):
            raise ValueError(
                f"the state is of a {what} with other parameters: {some(differing)}; {move}"
            )


def _differing(saved: Shapes, own: Shapes) -> dict[str, None]:
    """Each name whose parameter differs, in words."""
    found: dict[str, None] = {}
    for name in dict.fromkeys((*saved, *own)):
        if name not in saved:
            found[f"{name} is not in the state"] = None
        elif name not in own:
            found[f"{name} is only in the state"] = None
        # The shape of a lazy module is not known before its first pass.
        elif None not in (saved[name], own[name]) and saved[name] != own[name]:
            found[f"{name} is {saved[name]} in the state and {own[name]} here"] = None
    return found


def _shapes(parameters: Iterable[tuple[str, Tensor]]) -> Shapes:
    return {
        ".".join(part for part in name.split(".") if part not in _WRAPPERS): (
            None if is_lazy(parameter) else list(parameter.shape)
        )
        for name, parameter in parameters
    }
