"""The states of random generators as plain values."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

# Generators that a run may own besides the global ones.
KINDS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)


def of_process() -> dict[str, Any]:
    """The states of the global generators of torch, of its CUDA devices, numpy and Python."""
    used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    cuda = torch.cuda.get_rng_state_all() if used else []
    return {
        "torch": torch.get_rng_state(),
        "cuda": cuda,
        "numpy": _plain(np.random.get_state(legacy=False)),
        "python": _plain(random.getstate()),
    }


def set_process(state: dict[str, Any]) -> int:
    """Give the global generators their states.

    Returns:
        The number of CUDA devices with a state that this process does not have.
    """
    torch.set_rng_state(state["torch"].cpu())
    np.random.set_state(state["numpy"])
    random.setstate(_as_tuples(state["python"]))
    present = torch.cuda.device_count() if state["cuda"] else 0
    for index, each in enumerate(state["cuda"][:present]):
        torch.cuda.set_rng_state(each.cpu(), index)
    return len(state["cuda"]) - min(present, len(state["cuda"]))


def of_generator(generator: Any) -> Any:
    """The state of a generator of one of :data:`KINDS`."""
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, np.random.Generator):
        return _plain(generator.bit_generator.state)
    if isinstance(generator, np.random.RandomState):
        return _plain(generator.get_state(legacy=False))
    return _plain(generator.getstate())


def set_generator(generator: Any, state: Any) -> None:
    """Give a generator a state of :func:`of_generator`."""
    if isinstance(generator, torch.Generator):
        generator.set_state(state.cpu())
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(state)
    else:
        generator.setstate(_as_tuples(state))


def _plain(state: Any) -> Any:
    """Dicts, lists, numbers and strings: numpy takes lists where it gives arrays."""
    if isinstance(state, dict):
        return {name: _plain(entry) for name, entry in state.items()}
    if isinstance(state, (tuple, list)):
        return [_plain(entry) for entry in state]
    return state.tolist() if isinstance(state, (np.ndarray, np.generic)) else state


def _as_tuples(state: Any) -> Any:
    return tuple(map(_as_tuples, state)) if isinstance(state, list) else state
