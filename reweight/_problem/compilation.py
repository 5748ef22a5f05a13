"""A function compiled by ``torch.compile``, with a limit on how often, and its time."""

from __future__ import annotations

import logging
import time
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from operator import is_
from typing import Any, Protocol

import torch

logger = logging.getLogger("reweight")

# So many programs are compiled for one problem. Each takes a compiler up to minutes.
MOST_PROGRAMS = 4


class Pure(Protocol):
    """What is compiled: a function, and what its arguments are now."""

    def function(self) -> types.FunctionType:
        """A function of tensors that changes nothing."""

    def arguments(self, *args: Any) -> tuple[Any, ...]:
        """The arguments of that function."""


class Compilation:
    """A pure function, compiled for each kind of arguments when that is asked for.

    Attributes:
        pure: what is compiled; ``None`` before :meth:`take`, and where it is refused.
        refusal: why it is not compiled, or not any more, or ``""``.
        programs: how many programs were compiled so far.
        seconds: what the last of them took.
        age: how many results of programs were used since the last comparison.
        mode: of the eager step that results were last compared with.
    """

    def __init__(self) -> None:
        self.pure: Pure | None = None
        self.refusal = ""
        self.programs = 0
        self.seconds = 0.0
        self.age = 0
        self.mode = ""
        self._owners: tuple[object, ...] = ()
        self._function: Callable[..., Any] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # Programs hold the modules that they were made of, so a copy has none.
        return Compilation, ()

    @property
    def is_full(self) -> bool:
        """Whether there are as many programs as there may be."""
        return self.programs >= MOST_PROGRAMS

    def is_of(self, owners: Sequence[object]) -> bool:
        """Whether what is compiled was made of the very same objects."""
        return len(owners) == len(self._owners) and all(map(is_, owners, self._owners))

    def take(self, owners: Sequence[object], pure: Pure) -> None:
        """Compile another function from now on, made of some objects."""
        self.pure, self.refusal, self._owners = pure, "", tuple(owners)
        self._function = None

    def refuse(self, owners: Sequence[object], reason: str) -> None:
        """Compile nothing that is made of these objects."""
        self.pure = self._function = None
        self.refusal, self._owners = reason, tuple(owners)

    def run(self, *args: Any) -> Any | None:
        """The result of a program that fits the arguments; ``None`` if there is none."""
        if self._function is None:
            return None
        try:
            with _saving_as_before(), torch.compiler.set_stance("fail_on_recompile"):
                return self._function(*args)
        except Exception as error:  # of torch where none fits; of the losses, which the user sees
            logger.debug("no compiled program for this outer step: %s", str(error))
            return None

    def compiled(self, *args: Any) -> Any:
        """The result of a new program for these arguments.

        Raises:
            Exception: the function can't be compiled, or raises.
        """
        assert self.pure is not None and not self.is_full
        self.programs += 1
        start = time.perf_counter()
        if self._function is None:
            own = _with_own_code(self.pure.function())
            self._function = torch.compile(own, fullgraph=True, dynamic=False)
        with _saving_as_before():
            result = self._function(*args)
        self.seconds = time.perf_counter() - start
        logger.info("outer step compiled in %.1f s (program %d)", self.seconds, self.programs)
        return result


@contextmanager
def _saving_as_before() -> Iterator[None]:
    """Leave the hooks on saved tensors on: a program that raises in torch.func leaves them off."""
    enabled = torch._C._autograd._saved_tensors_hooks_is_enabled()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        if enabled:
            torch._C._autograd._saved_tensors_hooks_enable()


def _with_own_code(function: types.FunctionType) -> types.FunctionType:
    """The same function; torch.compile keeps and counts programs by code, not by function."""
    return types.FunctionType(
        function.__code__.replace(),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
