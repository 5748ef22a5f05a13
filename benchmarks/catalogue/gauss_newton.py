"""Models with outputs, and influences by dense Gauss-Newton matrices.

The reference makes the whole Jacobian of the outputs and the whole Hessian of the loss by them, in
one call of ``torch.func`` each, and solves with their product.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reweight import (
    ConjugateGradient,
    Hypergradient,
    ImplicitHypergradient,
    Losses,
    Neumann,
    Nystrom,
    Reweighted,
    SampleSpace,
    TableWeighter,
    wrap,
)

SIZE, WIDTH, ROWS, LENGTH = 6, 4, 9, 3
Batch = tuple[Tensor, Tensor, Tensor]  # features, targets, ids
LossFn = Callable[[Tensor, Batch], "Losses | Tensor"]


@dataclass(frozen=True)
class WithOutputs:
    """A model, and losses as a function of its outputs.

    Attributes:
        model: from a batch to outputs.
        loss_fn: ``(outputs, batch) -> losses``.
        decay: weight decay of the first half of the parameters, and of the second.
        damping: of the system.
        refused: by ``SampleSpace``: a part of the sentence, or ``""`` if it is served.
    """

    model: Callable[[], nn.Module]
    loss_fn: LossFn
    decay: tuple[float, float] = (0.0, 0.0)
    damping: float = 0.1
    refused: str = ""

    def wrapped(
        self, solver: Any, dtype: torch.dtype = torch.float64, hvp: Any = "auto"
    ) -> tuple[Reweighted, Batch, Batch]:
        """The problem, a train batch and a dev batch."""
        torch.manual_seed(0)
        model, weighter = self.model().to(dtype), TableWeighter(SIZE).to(dtype)
        with torch.no_grad():
            weighter.raw.copy_(torch.linspace(-1.0, 2.0, SIZE))
        named = list(model.parameters())
        half = len(named) // 2
        groups = [
            {"params": part, "weight_decay": decay}
            for part, decay in zip((named[:half], named[half:]), self.decay, strict=True)
            if part
        ]

        def losses(model: nn.Module, batch: Batch) -> Losses:
            ids = torch.arange(SIZE)
            return Losses.of(model(batch), lambda out: self.loss_fn(out, batch), inputs=ids)

        rw = wrap(
            model,
            weighter,
            losses,
            lambda model, batch: losses(model, batch).weighted.mean(),
            torch.optim.SGD(groups, lr=0.1),
            ImplicitHypergradient(solver, self.damping, hvp, curvature="gauss_newton"),
        )
        return rw, _batch(1, dtype), _batch(2, dtype)

    def hypergradient(
        self, solver: Any, dtype: torch.dtype = torch.float64, hvp: Any = "auto"
    ) -> Hypergradient:
        """By the library."""
        rw, batch, dev_batch = self.wrapped(solver, dtype, hvp)
        return rw.hypergradient(batch, dev_batch)

    def dense(self) -> tuple[Tensor, Tensor]:
        """The Gauss-Newton matrix with weight decay and damping, and the influence ``[B]``."""
        rw, batch, dev_batch = self.wrapped(SampleSpace())
        named = {n: p.detach() for n, p in rw.model.named_parameters()}
        theta = torch.cat([p.reshape(-1) for p in named.values()])
        weights = rw.weights(batch)

        def outputs(theta: Tensor, batch: Batch = batch) -> Tensor:
            parts = theta.split([p.numel() for p in named.values()])
            own = {n: x.view_as(p) for x, (n, p) in zip(parts, named.items(), strict=True)}
            found: Tensor = torch.func.functional_call(rw.model, own, (batch,))
            return found

        def stated(out: Tensor, batch: Batch) -> Losses:
            found = self.loss_fn(out, batch)
            return found if isinstance(found, Losses) else Losses(found)

        def inner(out: Tensor) -> Tensor:
            losses = stated(out, batch)
            return (weights * losses.weighted).mean() + losses.fixed

        out = outputs(theta)
        jacobian = torch.func.jacrev(outputs)(theta).flatten(0, -2)
        curvature = torch.func.hessian(inner)(out).reshape(out.numel(), out.numel())
        shift = [decay + self.damping for decay in self._decays(named)]
        matrix = jacobian.T @ curvature @ jacobian + torch.diag(theta.new_tensor(shift))
        v = torch.func.grad(lambda t: stated(outputs(t, dev_batch), dev_batch).weighted.mean())(
            theta
        )
        rows = torch.func.jacrev(lambda t: stated(outputs(t), batch).weighted)(theta)
        return matrix, -rows @ torch.linalg.solve(matrix, v) / SIZE

    def _decays(self, named: dict[str, Tensor]) -> list[float]:
        half = len(named) // 2
        sizes = [p.numel() for p in named.values()]
        return [self.decay[i >= half] for i, size in enumerate(sizes) for _ in range(size)]


def _batch(seed: int, dtype: torch.dtype) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(SIZE, WIDTH, generator=generator, dtype=torch.float64).to(dtype)
    y = torch.randn(SIZE, generator=generator, dtype=torch.float64).to(dtype)
    return x, y, torch.randint(ROWS, (SIZE, LENGTH), generator=generator)


class Reading(nn.Module):
    """A model that reads one entry of the batch."""

    def __init__(self, entry: int, *layers: nn.Module) -> None:
        super().__init__()
        self.entry, self.layers = entry, nn.Sequential(*layers)

    def forward(self, batch: Batch) -> Tensor:
        out: Tensor = self.layers(batch[self.entry])
        return out


class Tables(nn.Module):
    """Two tables with padding, one read as a bag, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Embedding(ROWS, 2, padding_idx=0)
        self.bag = nn.EmbeddingBag(ROWS, 2, padding_idx=1)
        self.out = nn.Linear(3, 1)

    def forward(self, batch: Batch) -> Tensor:
        ids = batch[2]
        product = self.first(ids[:, 0]) * self.bag(ids)
        first = self.first(ids[:, 1])[:, :1]
        return self.out(torch.cat([torch.tanh(product), first], 1))


class Sequences(nn.Module):
    """Layers that see several rows of each sample, one of them twice."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(ROWS, WIDTH), nn.LayerNorm(WIDTH)
        self.twice = nn.Linear(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, 2, bias=False)

    def forward(self, batch: Batch) -> Tensor:
        hidden = self.norm(self.table(batch[2]))
        hidden = torch.tanh(self.twice(torch.tanh(self.twice(hidden))))
        return self.out(hidden).mean(1)


class TimeFirst(nn.Module):
    """Rows of a layer that come time step by time step."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(ROWS, 2), nn.Linear(2, 1)
        self.mixed = nn.Linear(2, 2)

    def forward(self, batch: Batch) -> Tensor:
        steps = self.table(batch[2]).transpose(0, 1).contiguous()
        hidden = torch.tanh(self.mixed(steps.reshape(-1, 2))).view(LENGTH, SIZE, 2)
        scale = torch.arange(1.0, LENGTH + 1.0, dtype=hidden.dtype)
        return self.out(torch.einsum("lbd,l->bd", hidden, scale))


def mlp(outputs: int) -> nn.Module:
    return Reading(0, nn.Linear(WIDTH, 5), nn.Tanh(), nn.Linear(5, outputs))


def conv() -> nn.Module:
    return Reading(
        0, nn.Unflatten(1, (1, WIDTH)), nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(4, 1)
    )


def norm_over_batch() -> nn.Module:
    norm = nn.BatchNorm1d(3, affine=False, track_running_stats=False)
    return Reading(0, nn.Linear(WIDTH, 3), norm, nn.Tanh(), nn.Linear(3, 1))


def logistic(out: Tensor, batch: Batch) -> Tensor:
    target = (batch[1] > 0).to(out.dtype)
    return F.binary_cross_entropy_with_logits(out.squeeze(-1), target, reduction="none")


def cross_entropy(out: Tensor, batch: Batch) -> Tensor:
    return F.cross_entropy(out, batch[2][:, 0] % out.shape[1], reduction="none")


def squares(out: Tensor, batch: Batch) -> Tensor:
    return (out - batch[1].unsqueeze(1)).square().sum(1)


def half_fixed(out: Tensor, batch: Batch) -> Losses:
    """Two heads: one loss gets weights, the other one is fixed."""
    source, target = out[:, :1], out[:, 1:]
    return Losses(logistic(source, batch), squares(target, batch).mean())


def bounded(out: Tensor, batch: Batch) -> Tensor:
    """Not convex in the outputs."""
    return torch.tanh(squares(out, batch))


def contrastive(out: Tensor, batch: Batch) -> Tensor:
    """The loss of each sample depends on the outputs of all."""
    return F.cross_entropy(out @ out.T, torch.arange(SIZE), reduction="none")


PROBLEMS: dict[str, WithOutputs] = {
    "logistic": WithOutputs(lambda: mlp(1), logistic),
    "cross entropy": WithOutputs(lambda: mlp(3), cross_entropy),
    "squares, two outputs": WithOutputs(lambda: mlp(2), squares, (0.02, 0.3)),
    "weight decay only": WithOutputs(lambda: mlp(2), squares, (0.05, 0.2), damping=0.0),
    "small damping": WithOutputs(lambda: mlp(1), logistic, damping=1e-4),
    "no damping": WithOutputs(lambda: mlp(1), logistic, damping=0.0, refused="both are 0"),
    "half fixed": WithOutputs(lambda: mlp(2), half_fixed),
    "tables": WithOutputs(Tables, logistic, (0.1, 0.0)),
    "sequences": WithOutputs(Sequences, cross_entropy),
    "time first": WithOutputs(TimeFirst, logistic, refused="one after the other"),
    "convolution": WithOutputs(conv, logistic, refused="ConvolutionBackward0"),
    "norm over the batch": WithOutputs(norm_over_batch, logistic, refused="BatchNorm"),
    "bounded loss": WithOutputs(lambda: mlp(1), bounded, refused="convex"),
    "contrastive": WithOutputs(lambda: mlp(2), contrastive, refused="mix samples"),
}

SOLVERS: dict[str, Any] = {
    "Neumann(3)": Neumann(3),
    "Neumann(500)": Neumann(500),
    "CG()": ConjugateGradient(),
    "CG(200, rtol=1e-10)": ConjugateGradient(200, rtol=1e-10),
    "CG(200, rtol=1e-3)": ConjugateGradient(200, rtol=1e-3),
    "Nystrom(100, 1e-6)": Nystrom(100, damping=1e-6),
    "SampleSpace()": SampleSpace(),
}


def error(problem: WithOutputs, influence: Tensor) -> float:
    """The relative error of an influence; infinite where the matrix is singular."""
    matrix, expected = problem.dense()
    sizes = torch.linalg.eigvalsh(matrix).abs()
    if float(sizes.min()) < 1e-12 * float(sizes.max()):
        return math.inf
    return float((influence - expected).norm() / expected.norm())
