"""Layers and operations, each in a small model, and an influence that needs first derivatives only.

The reference knows nothing of second derivatives: its Hessian is made of differences of float64
gradients, of fourth order, so a wrong double backward can't hide in it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from reweight import (
    ConjugateGradient,
    Hypergradient,
    ImplicitHypergradient,
    Losses,
    Reweighted,
    TableWeighter,
    wrap,
)

SIZE = 6
SEED = 7  # of torch's generator before every evaluation: dropout draws the same mask
Batch = tuple[Tensor, Tensor, Tensor]  # inputs, targets, ids


class Net(nn.Module):
    """A layer, read out by a linear one."""

    def __init__(
        self, body: nn.Module, width: int, read: Callable[[Any, Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        self.body = body
        self.out = nn.Linear(width, 1)
        self.read = read

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x) if self.read is None else self.read(self.body, x)
        return self.out(torch.tanh(hidden.flatten(1))).reshape(-1)


class Read(nn.Module):
    """A linear layer and a function of its output."""

    def __init__(self, read: Callable[[Tensor], Tensor], width: int = 4) -> None:
        super().__init__()
        self.linear = nn.Linear(4, width)
        self.function = read

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.linear(x))


class Tied(nn.Module):
    """One weight in two places, and one layer by two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.again = self.first
        self.third = nn.Linear(4, 4)
        self.third.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.third(torch.tanh(self.again(torch.tanh(self.first(x)))))


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.inside = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4))
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        if self.reentrant:  # without an input that requires gradients it does not even warn
            x = x.detach().requires_grad_(True)
        hidden: Tensor = checkpoint(self.inside, x, use_reentrant=self.reentrant)
        return hidden


class Bag(nn.Module):
    """Signs of its inputs, looked up in a bag of its own: it has no second derivative in torch."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(5, 1))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.embedding_bag((x > 0).long(), self.table)


class OnceDifferentiable(torch.autograd.Function):
    """A cube as people wrote them before double backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grad


class Detaching(torch.autograd.Function):
    """A cube whose backward pass hides the input from a second one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x.detach() ** 2 * grad


class StraightThrough(torch.autograd.Function):
    """Rounds, and passes the gradient on as if it had not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x + 0.3 * torch.sin(3.0 * x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class Fourier(nn.Module):
    """Complex numbers inside, and a complex and an integer buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.randn(3, 2))
        self.register_buffer("phase", torch.exp(1j * torch.arange(3.0)))
        self.register_buffer("order", torch.tensor([2, 0, 1, 3]))

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(x) * torch.view_as_complex(self.filter) * self.phase
        return torch.fft.irfft(spectrum, n=4)[:, self.order]


class Scalar(nn.Module):
    """A scalar parameter, a frozen one, an empty one, and one that no loss touches."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.7))
        self.frozen = nn.Parameter(torch.ones(4), requires_grad=False)
        self.empty = nn.Parameter(torch.empty(0))
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * (x + self.frozen)


def floats(*shape: int) -> Callable[[torch.Generator], Tensor]:
    return lambda generator: torch.randn(SIZE, *shape, generator=generator, dtype=torch.float64)


def ids(generator: torch.Generator) -> Tensor:
    return torch.randint(0, 7, (SIZE, 3), generator=generator)


def squared(model: nn.Module, batch: Batch) -> Tensor:
    return (model(batch[0]) - batch[1]).square()


@dataclass(frozen=True)
class Operation:
    """A model with the operation in it, and what is to be expected.

    Attributes:
        build: the model, float32 until it is turned into float64.
        expected: the mode that ``"auto"`` ends in, or a pattern of a refusal, or one of a caveat.
        inputs: of one batch.
        losses: one per sample.
        around: a context that the training step runs in.
        like: the same function without the operation, for the reference; ``None``: the model.
    """

    build: Callable[[], nn.Module]
    expected: str = "autograd"
    inputs: Callable[[torch.Generator], Tensor] = field(default_factory=lambda: floats(4))
    losses: Callable[[Any, Batch], Tensor] = squared
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    like: Callable[[nn.Module], nn.Module] | None = None

    @property
    def refused(self) -> bool:
        return self.expected not in ("autograd", "func", "finite_difference")

    def model(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        torch.manual_seed(0)
        model: nn.Module = self.build().to(dtype)
        return model

    def batches(self, dtype: torch.dtype = torch.float64) -> tuple[Batch, Batch]:
        generator = torch.Generator().manual_seed(1)

        def batch() -> Batch:
            x, y = self.inputs(generator), torch.randn(SIZE, generator=generator).double()
            x = x.to(dtype) if x.is_floating_point() else x
            return x, y.to(dtype), torch.arange(SIZE)

        return batch(), batch()

    def wrapped(
        self, dtype: torch.dtype, damping: float, hvp: Any = "auto", solver: Any = None
    ) -> Reweighted:
        rtol = 1e-12 if dtype == torch.float64 else 1e-5
        solver = solver or ConjugateGradient(300, rtol)
        return wrap(
            self.model(dtype),
            TableWeighter(SIZE).to(dtype),
            lambda model, batch: Losses(self.losses(model, batch), inputs=batch[2]),
            lambda model, batch: self.losses(model, batch).mean(),
            hypergradient=ImplicitHypergradient(solver, damping, hvp),
        )

    def hypergradient(
        self,
        dtype: torch.dtype = torch.float64,
        damping: float = 1.0,
        hvp: Any = "auto",
        solver: Any = None,
    ) -> Hypergradient:
        rw = self.wrapped(dtype, damping, hvp, solver)
        train, dev = self.batches(dtype)
        torch.manual_seed(SEED)
        with self.around():
            return rw.hypergradient(train, dev)

    def reference(self) -> tuple[Tensor, float]:
        """The influence of each sample ``[SIZE]``, and the damping at which it is that."""
        gradients = _Gradients(self)
        start, moving = gradients.start, gradients.moving

        def difference(direction: Tensor) -> Tensor:
            def at(t: float) -> Tensor:
                return gradients.of_mean(gradients.train, start + t * step * direction)

            step = 2e-4
            return (8.0 * (at(1.0) - at(-1.0)) - (at(2.0) - at(-2.0))) / (12.0 * step)

        units = torch.eye(len(start), dtype=torch.float64) * moving
        hessian = torch.stack([difference(unit) for unit in units])
        hessian = (hessian + hessian.T) / 2.0
        # Enough for every model here to be positive definite.
        damping = 1.0 + max(0.0, -float(torch.linalg.eigvalsh(hessian)[0]))
        v = gradients.of_mean(gradients.dev, start)
        u = torch.linalg.solve(hessian + damping * torch.eye(len(start)).double(), v)
        return gradients.influence(u), damping

    def first_order(self, step_size: float = 1.0) -> Tensor:
        """The influence ``[SIZE]`` with a multiple of the identity as inverse of the Hessian."""
        gradients = _Gradients(self)
        return gradients.influence(step_size * gradients.of_mean(gradients.dev, gradients.start))


class _Gradients:
    """Gradients of an operation's losses at any parameters, flat, by one backward pass each."""

    def __init__(self, operation: Operation) -> None:
        self._losses, self._model = operation.losses, operation.model()
        if operation.like is not None:
            self._model = operation.like(self._model)
        self.train, self.dev = operation.batches()
        self._parameters = [p for p in self._model.parameters() if p.requires_grad]
        self.start = torch.cat([p.detach().reshape(-1) for p in self._parameters])
        self._buffers = [(b, b.clone()) for b in self._model.buffers()]

    @property
    def moving(self) -> Tensor:
        """1 for what has a gradient; a padding row has none, by decree: it is a constant."""
        return torch.cat([_movable(self._model, p).reshape(-1) for p in self._parameters])

    def of(self, reduce: Callable[[Tensor], Tensor], batch: Batch, theta: Tensor) -> Tensor:
        """The gradient of the reduced losses."""
        offset = 0
        with torch.no_grad():
            for p in self._parameters:
                p.copy_(theta[offset : offset + p.numel()].view_as(p))
                offset += p.numel()
            for buffer, value in self._buffers:
                buffer.copy_(value)
        torch.manual_seed(SEED)
        loss = reduce(self._losses(self._model, batch))
        grads = torch.autograd.grad(loss, self._parameters, allow_unused=True)
        dense = [
            torch.zeros_like(p) if g is None else g.to_dense()
            for p, g in zip(self._parameters, grads, strict=True)
        ]
        return torch.cat([g.reshape(-1) for g in dense])

    def of_mean(self, batch: Batch, theta: Tensor) -> Tensor:
        """The gradient of the mean loss."""
        return self.of(Tensor.mean, batch, theta)

    def influence(self, u: Tensor) -> Tensor:
        """``−⟨∇ℓ_i, u⟩/SIZE``."""
        influence = [
            -float(self.of(lambda losses, i=i: losses[i], self.train, self.start) @ u) / SIZE
            for i in range(SIZE)
        ]
        return torch.tensor(influence, dtype=torch.float64)


def _movable(model: nn.Module, parameter: Tensor) -> Tensor:
    movable = torch.ones_like(parameter)
    for part in model.modules():
        if isinstance(part, nn.Embedding) and part.weight is parameter:
            movable[[] if part.padding_idx is None else part.padding_idx] = 0.0
    return movable


def recurrent(kind: type[nn.Module]) -> Operation:
    return Operation(
        lambda: Net(kind(4, 3, batch_first=True), 3, lambda m, x: m(x)[0][:, -1]),
        inputs=floats(5, 4),
    )


def attention(weights: bool) -> Operation:
    return Operation(
        lambda: Net(
            nn.MultiheadAttention(4, 2, batch_first=True),
            4,
            lambda m, x: m(x, x, x, need_weights=weights)[0].mean(1),
        ),
        inputs=floats(5, 4),
    )


def transformer(mode: bool) -> Operation:
    return Operation(
        lambda: Net(
            nn.TransformerEncoderLayer(4, 2, 6, dropout=0.1, activation="gelu", batch_first=True),
            4,
            lambda m, x: m(x).mean(1),
        ).train(mode),
        inputs=floats(5, 4),
    )


def layer(body: Callable[[], nn.Module], width: int = 4, **changes: Any) -> Operation:
    return Operation(lambda: Net(body(), width), **changes)


def image(body: Callable[[], nn.Module], width: int) -> Operation:
    return layer(body, width, inputs=floats(2, 4, 4))


def function(read: Callable[[Tensor], Tensor], width: int = 4, **changes: Any) -> Operation:
    return layer(lambda: Read(read), width, **changes)


def ctc(model: nn.Module, batch: Batch) -> Tensor:
    log_probs = model(batch[0]).log_softmax(-1).transpose(0, 1)
    targets = 1 + torch.arange(2 * SIZE).view(SIZE, 2) % 3
    steps, lengths = torch.full((SIZE,), 5), torch.full((SIZE,), 2)
    return F.ctc_loss(log_probs, targets, steps, lengths, reduction="none")


def binary(model: nn.Module, batch: Batch) -> Tensor:
    labels = (batch[1] > 0).to(batch[1])
    return F.binary_cross_entropy_with_logits(model(batch[0]), labels, reduction="none")


def categorical(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[2] % 3, reduction="none")


def eager(model: nn.Module) -> nn.Module:
    original: nn.Module = model._orig_mod
    return original


def compiled() -> nn.Module:
    torch._dynamo.reset()  # past its limit of recompilations it would run the eager module
    # Not "inductor", which compiles for half a minute; the autograd around the graph is the same.
    return torch.compile(Net(nn.Linear(4, 3), 3), backend="aot_eager")  # type: ignore[return-value]


def by_distance(x: Tensor) -> Tensor:
    return torch.cdist(x[:, None], torch.eye(4).to(x)[None, :2])


def is_twice_differentiable(operation: Callable[[Tensor], Tensor]) -> bool:
    """Whether this torch has a double backward of it, which a later one may gain."""
    x = torch.randn(3, 4, requires_grad=True)
    (slope,) = torch.autograd.grad(operation(x).square().sum(), x, create_graph=True)
    try:
        torch.autograd.grad(slope.sum(), x)
    except RuntimeError:
        return False
    return True


DIFFERENCES = "finite_difference"
NOT_ITS_OWN = "(?<!second )derivatives"  # the gradients are not those of the loss

OPERATIONS: dict[str, Operation] = {
    "Linear": layer(lambda: nn.Linear(4, 3), 3),
    "Bilinear": Operation(lambda: Net(nn.Bilinear(4, 4, 2), 2, lambda m, x: m(x, x))),
    "Conv1d": layer(lambda: nn.Conv1d(2, 2, 3), 4, inputs=floats(2, 4)),
    "Conv2d": image(lambda: nn.Conv2d(2, 2, 3), 8),
    "ConvTranspose2d": image(lambda: nn.ConvTranspose2d(2, 1, 2), 25),
    "BatchNorm1d, train": layer(lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), 3),
    "BatchNorm1d, eval": Operation(
        lambda: Net(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), 3).eval()
    ),
    "BatchNorm2d, train": image(lambda: nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2)), 8),
    "LayerNorm": layer(lambda: nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))),
    "GroupNorm": image(lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4)), 16),
    "RMSNorm": layer(lambda: nn.Sequential(nn.Linear(4, 4), nn.RMSNorm(4))),
    "Dropout": layer(lambda: nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5)), 6),
    "Softmax": function(lambda x: x.softmax(-1)),
    "GELU": function(F.gelu),
    "MaxPool2d": image(lambda: nn.Sequential(nn.Conv2d(2, 2, 3), nn.MaxPool2d(2)), 2),
    "Embedding": layer(lambda: nn.Embedding(7, 2), 6, inputs=ids),
    "Embedding(padding_idx=0)": layer(lambda: nn.Embedding(7, 2, padding_idx=0), 6, inputs=ids),
    "Embedding(sparse=True)": layer(lambda: nn.Embedding(7, 2, sparse=True), 6, inputs=ids),
    "Embedding(max_norm=1)": layer(
        lambda: nn.Embedding(7, 2, max_norm=1.0), 6, inputs=ids, expected="max_norm"
    ),
    "Embedding(scale_grad_by_freq)": layer(
        lambda: nn.Embedding(7, 2, scale_grad_by_freq=True),
        6,
        inputs=ids,
        expected="scale_grad_by_freq",
    ),
    "EmbeddingBag": layer(lambda: nn.EmbeddingBag(7, 2), 2, inputs=ids),
    "EmbeddingBag(mode='max')": layer(lambda: nn.EmbeddingBag(7, 2, mode="max"), 2, inputs=ids),
    "RNN": recurrent(nn.RNN),
    "GRU": recurrent(nn.GRU),
    "LSTM": recurrent(nn.LSTM),
    "MultiheadAttention": attention(True),
    "MultiheadAttention, need_weights=False": attention(False),
    "scaled_dot_product_attention": Operation(
        lambda: Net(nn.Linear(4, 4), 4, lambda m, x: _attend(m(x)).mean(1)), inputs=floats(5, 4)
    ),
    "TransformerEncoderLayer, train": transformer(True),
    "TransformerEncoderLayer, eval": transformer(False),
    "weight_norm": layer(
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), 3, expected=DIFFERENCES
    ),
    "weight_norm, the old one": layer(
        lambda: nn.utils.weight_norm(nn.Linear(4, 3)), 3, expected=DIFFERENCES
    ),
    "spectral_norm, train": layer(
        lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3)),
        3,
        expected=NOT_ITS_OWN,  # its singular vectors move with the weight, and have no gradient
    ),
    "spectral_norm, eval": Operation(
        lambda: Net(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3)), 3).eval()
    ),
    "tied weights": layer(Tied),
    "scalar, frozen and unused parameters": layer(Scalar),
    "complex and integer buffers, FFT": layer(Fourier),
    "checkpoint(use_reentrant=False)": layer(lambda: Checkpointed(False)),
    "checkpoint(use_reentrant=True)": layer(
        lambda: Checkpointed(True), expected="use_reentrant=False"
    ),
    "autograd.Function, once differentiable": function(
        OnceDifferentiable.apply, expected=DIFFERENCES
    ),
    "autograd.Function that detaches": function(Detaching.apply, expected=DIFFERENCES),
    "straight-through estimator": function(StraightThrough.apply, expected=NOT_ITS_OWN),
    "cdist": function(
        by_distance, 2, expected="autograd" if is_twice_differentiable(by_distance) else DIFFERENCES
    ),
    "linalg.inv": function(lambda x: torch.linalg.inv(torch.eye(2).to(x) * 3 + x.view(-1, 2, 2))),
    "mse_loss": layer(
        lambda: nn.Linear(4, 3),
        3,
        losses=lambda m, b: F.mse_loss(m(b[0]), b[1], reduction="none"),
    ),
    "binary_cross_entropy_with_logits": layer(lambda: nn.Linear(4, 3), 3, losses=binary),
    "cross_entropy": Operation(
        lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)), losses=categorical
    ),
    "ctc_loss": Operation(
        lambda: nn.Linear(4, 4), inputs=floats(5, 4), losses=ctc, expected=DIFFERENCES
    ),
    # torch.func fails in one that torch 2.4 compiled, and works in one of 2.6.
    "compiled module": Operation(
        compiled,
        expected="func" if hasattr(torch.compiler, "set_stance") else DIFFERENCES,
        like=eager,
    ),
    "autocast bf16": layer(
        lambda: nn.Linear(4, 3), 3, around=lambda: torch.autocast("cpu", torch.bfloat16)
    ),
}


def _attend(x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x, x, x)
