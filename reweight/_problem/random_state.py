"""The state of the global random generators of torch, numpy and Python."""

from __future__ import annotations

import ctypes
import random
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

# 624 words and a position.
_MT19937_BYTES = 2500


class RandomState(NamedTuple):
    """What :meth:`Generators.now` saves."""

    torch: Tensor
    python: tuple[Any, ...]
    numpy: _NumpyState
    cuda: list[Tensor]


class _NumpyState(NamedTuple):
    """The state of numpy's global generator.

    Attributes:
        words: the memory of its bit generator; ``None`` for another kind than the usual one.
        whole: what ``np.random.get_state()`` returns, which takes 0.1 ms.
    """

    words: bytes | None
    whole: Any

    @property
    def shows_all(self) -> bool:
        """Whether a generator with the same words is in the same state.

        The second number of a pair of normal ones is kept beside the words, and using it leaves
        them as they are.
        """
        return self.words is not None and not self.whole["has_gauss"]


class Generators:
    """The global generators, those of some CUDA devices included.

    Args:
        devices: the devices of the parameters.
    """

    # Shared by all: the state of a generator that nobody uses is read once.
    _last = _NumpyState(None, None)

    def __init__(self, devices: set[torch.device]) -> None:
        self._cuda = sorted(d.index or 0 for d in devices if d.type == "cuda")

    def now(self) -> RandomState:
        """The present state."""
        return RandomState(
            torch.get_rng_state(),
            random.getstate(),
            self._numpy(),
            [torch.cuda.get_rng_state(index) for index in self._cuda],
        )

    def differ(self, state: RandomState) -> bool:
        """Whether the present state is another one."""
        now = self.now()
        pairs = zip((now.torch, *now.cuda), (state.torch, *state.cuda), strict=True)
        # Another kind of numpy generator than the usual one shows no words.
        others = now.python, now.numpy.words
        return others != (state.python, state.numpy.words) or not all(
            torch.equal(one, other) for one, other in pairs
        )

    def put(self, state: RandomState) -> None:
        """Go back to a state."""
        torch.set_rng_state(state.torch)
        random.setstate(state.python)
        if not (state.numpy.shows_all and _words() == state.numpy.words):
            np.random.set_state(state.numpy.whole)
        for index, each in zip(self._cuda, state.cuda, strict=True):
            torch.cuda.set_rng_state(each, index)

    @classmethod
    def _numpy(cls) -> _NumpyState:
        words, last = _words(), cls._last
        if words is None or words != last.words or not last.shows_all:
            cls._last = last = _NumpyState(words, np.random.get_state(legacy=False))
        return last


def _words() -> bytes | None:
    """The memory of numpy's global bit generator, if it is of the usual kind."""
    generator = np.random.mtrand.get_bit_generator()
    if not isinstance(generator, np.random.MT19937):
        return None
    return ctypes.string_at(generator.ctypes.state_address, _MT19937_BYTES)
