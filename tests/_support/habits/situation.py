"""What an input is, and the registry of all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from reweight import LossWeighter


@dataclass(frozen=True)
class Inner:
    """A tensor that the optimizers move.

    Attributes:
        tensor: a leaf.
        free: which of its entries move; all of them where it is ``None``.
        decay: the weight decay that the optimizer gives it.
    """

    tensor: Tensor
    free: Tensor | None = None
    decay: float = 0.0


def weighter(dtype: torch.dtype = torch.float64) -> LossWeighter:
    """A weighter whose weights depend on the losses."""
    made = LossWeighter(4).to(dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=generator))
    return made


def _nothing() -> None:
    """The habit needs no such call."""


@dataclass
class Situation:
    """Arguments of ``wrap``, two batches, and what is needed to compute the right answer.

    Attributes:
        model: argument of ``wrap``; so are ``losses``, ``outer_loss``, ``weighter``, ``optimizer``,
            ``inner_params``, ``hvp``, ``damping`` and ``reduction``. Without a damping, the
            reference chooses one that makes the system well conditioned.
        train: train batch.
        dev: dev batch.
        inner: the tensors that really move. The reference moves them in place.
        refresh: called before each evaluation of the reference, where a forward pass changes what
            the next one computes.
        install: called before the library runs, and not for the reference: hooks, for example.
        later: what changes between a first outer step and the one that is judged.
        early: the batches of the first outer step, where they are others.
        around: the context in which the library runs.
        watched: further state that must not change.
        pure: whether all state is compared before and after.
    """

    model: nn.Module
    losses: Callable[[Any, Any], Any]
    outer_loss: Callable[[Any, Any], Tensor]
    train: Any
    dev: Any
    inner: Sequence[Tensor | Inner]
    weighter: Any = field(default_factory=weighter)
    optimizer: Any = None
    inner_params: Callable[[str], bool] | None = None
    hvp: Any = "auto"
    damping: float | None = None
    reduction: Any = "mean"
    refresh: Callable[[], None] = _nothing
    install: Callable[[], None] = _nothing
    later: Callable[[], None] | None = None
    early: tuple[Any, Any] | None = None
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    watched: Any = ()
    pure: bool = True


@dataclass(frozen=True)
class Habit:
    """One input.

    Attributes:
        kind: ``"A"`` to ``"E"``.
        name: what it does.
        build: ``twin -> Situation``, with the same numbers at each call. The reference is computed
            on the twin, which may do without the habit.
        refused: words of which the error has one, if the input may be refused.
        causes: words of which the verdict or a warning has one, if the result may be distrusted.
        named: words of which the verdict or a warning must have one, whatever the result is.
        tolerance: in the place of the one that follows from the mode and the type.
        slow: whether the quick tests leave it out, because a similar input is among them.
    """

    kind: str
    name: str
    build: Callable[[bool], Situation]
    refused: tuple[str, ...] = ()
    causes: tuple[str, ...] = ()
    named: tuple[str, ...] = ()
    tolerance: float | None = None
    slow: bool = False

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}"


HABITS: list[Habit] = []


def register(kind: str, name: str, build: Callable[[bool], Situation], **expected: Any) -> None:
    """Add an input to the registry."""
    if any((h.kind, h.name) == (kind, name) for h in HABITS):
        raise ValueError(f"two inputs of kind {kind} have the name {name!r}")
    HABITS.append(Habit(kind, name, build, **expected))


def habit(
    kind: str, name: str, **expected: Any
) -> Callable[[Callable[[bool], Situation]], Callable[[bool], Situation]]:
    """Decorate a function ``twin -> Situation`` to make it an input."""

    def decorate(build: Callable[[bool], Situation]) -> Callable[[bool], Situation]:
        register(kind, name, build, **expected)
        return build

    return decorate
