"""What the inputs are built from: data, losses, and operations without a second derivative."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from _support.habits import Situation

SIZE, DIM, HIDDEN, CLASSES = 6, 3, 4, 5
MODES = ("auto", "autograd", "func", "finite_difference")

# How a wrong second derivative is named.
SECOND = ("second derivative", "not compared", "could not be compared", "finite differences")

_forced = itertools.count()


def quick(hvp: str) -> bool:
    """Whether the quick tests try an input in this mode: every eighth of those in a forced one."""
    return hvp == "auto" or next(_forced) % 8 == 0


Head = Callable[[Tensor, Tensor, Any], Tensor]


def randn(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal numbers, the same in every type."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def pair(seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Features ``[B, 3]`` and targets ``[B]``."""
    return randn(SIZE, DIM, seed=seed, dtype=dtype), randn(SIZE, seed=seed + 1, dtype=dtype)


def squared(model: Any, batch: Any) -> Tensor:
    """Squared errors ``[B]``."""
    error: Tensor = (model(batch[0]).reshape(-1) - batch[1]).square()
    return error


def mean_squared(model: Any, batch: Any) -> Tensor:
    return squared(model, batch).mean()


def situation(model: nn.Module, **changes: Any) -> Situation:
    """Squared errors of a network, whose trainable parameters are inner."""
    arguments: dict[str, Any] = {
        "model": model,
        "losses": squared,
        "outer_loss": mean_squared,
        "train": pair(1),
        "dev": pair(3),
        "inner": [p for p in model.parameters() if p.requires_grad],
        **changes,
    }
    return Situation(**arguments)


class Tanh(torch.autograd.Function):
    """Without a double backward, as ``once_differentiable`` says."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = torch.tanh(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (y,) = ctx.saved_tensors
        return grad * (1.0 - y.square())


class Detached(torch.autograd.Function):
    """``tanh`` as kernels do it: the first derivative is right, the second one silently wrong."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = torch.tanh(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (y,) = ctx.saved_tensors
        return grad * (1.0 - y.detach().square())


class Net(nn.Module):
    """A layer, an activation and a vector, in any type."""

    def __init__(
        self, act: Callable[[Tensor], Tensor] = torch.tanh, dtype: torch.dtype = torch.float64
    ) -> None:
        super().__init__()
        self.act = act
        self.w = nn.Parameter(0.7 * randn(HIDDEN, DIM, seed=10, dtype=dtype))
        self.v = nn.Parameter(0.7 * randn(HIDDEN, seed=11, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x @ self.w.T) @ self.v


def filled(module: nn.Module, seed: int = 20, scale: float = 0.6) -> nn.Module:
    """Float64, and the same parameters at every call."""
    module.double()
    with torch.no_grad():
        for i, p in enumerate(module.parameters()):
            p.copy_(scale * randn(*p.shape, seed=seed + i))
    return module


# -- losses of two tensors, without a double backward ---------------------------------------------


def _hidden(w: Tensor, batch: Any) -> Tensor:
    return torch.tanh(batch["x"] @ w.T)


def by_distance(w: Tensor, c: Tensor, batch: Any) -> Tensor:
    return (torch.cdist(_hidden(w, batch), c)[:, 0] - batch["y"]).square()


def by_bag(w: Tensor, c: Tensor, batch: Any) -> Tensor:
    bags = F.embedding_bag(batch["ids"], c, mode="sum")
    return ((bags * _hidden(w, batch)).sum(1) - batch["y"]).square()


def by_once(w: Tensor, c: Tensor, batch: Any) -> Tensor:
    return ((Tanh.apply(batch["x"] @ w.T) @ c.T).sum(1) - batch["y"]).square()


def by_ctc(w: Tensor, c: Tensor, batch: Any) -> Tensor:
    scores = torch.tanh(batch["steps"] @ w.T) @ c.T
    lengths = torch.full((SIZE,), scores.shape[0])
    return F.ctc_loss(
        scores.log_softmax(-1),
        batch["labels"],
        lengths,
        torch.full((SIZE,), 2),
        reduction="none",
    )


HEADS: dict[str, Head] = {
    "cdist": by_distance,
    "EmbeddingBag": by_bag,
    "once_differentiable": by_once,
    "ctc_loss": by_ctc,
}


def two_tensors() -> tuple[Tensor, Tensor]:
    """The values of ``w [4, 3]`` and ``c [5, 4]``."""
    return 0.5 * randn(HIDDEN, DIM, seed=1), 0.7 * randn(CLASSES, HIDDEN, seed=2)


def rich(seed: int) -> dict[str, Tensor]:
    """A batch for every head."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "x": randn(SIZE, DIM, seed=seed),
        "y": randn(SIZE, seed=seed + 1),
        "ids": torch.randint(CLASSES, (SIZE, 2), generator=generator),
        "steps": randn(4, SIZE, DIM, seed=seed + 2),
        "labels": torch.randint(1, CLASSES, (SIZE, 2), generator=generator),
    }


def rotated() -> Iterator[str]:
    """The names of the heads, again and again."""
    while True:
        yield from HEADS
