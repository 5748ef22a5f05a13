"""The derivatives of outputs by the parameters of layers, as products of what layers keep.

For a sample ``b`` and an output ``c``, the derivative by the weight of a linear layer is
``Σ_n d[c, n] ⊗ a[n]`` over the rows ``n`` of the layer that belong to ``b``, with ``a`` its input
and ``d[c]`` the derivative of output ``c`` by its output. So products with the Jacobian, and the
products of its rows with each other, need ``a`` and ``d`` only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

# Entries of a block of products of rows that is made at a time.
_BLOCK = 4_000_000


class Layer(ABC):
    """How the outputs ``[C, B]`` depend on one parameter."""

    @abstractmethod
    def push(self, v: Tensor) -> Tensor:
        """``J v``, ``[C, B]``, for ``v`` of the parameter's shape."""

    @abstractmethod
    def pull(self, w: Tensor) -> Tensor:
        """``Jᵀ w`` in the parameter's shape, for ``w`` ``[C, B]``."""

    @abstractmethod
    def kernel(self) -> Tensor:
        """``J Jᵀ``, ``[C, B, C, B]``."""


@dataclass(frozen=True)
class PerSample(Layer):
    """A small parameter, of which each output has a gradient of its own.

    Attributes:
        gradients: ``[C, B, n]``.
        shape: of the parameter, with ``n`` entries.
        beside: the name of the linear weight to whose rows the parameter is added; ``""``: none.
    """

    gradients: Tensor
    shape: torch.Size
    beside: str = ""

    def push(self, v: Tensor) -> Tensor:
        """See :class:`Layer`."""
        return self.gradients @ v.reshape(-1)

    def pull(self, w: Tensor) -> Tensor:
        """See :class:`Layer`."""
        return torch.einsum("cb,cbn->n", w, self.gradients).view(self.shape)

    def kernel(self) -> Tensor:
        """See :class:`Layer`."""
        flat = self.gradients.flatten(0, 1)
        shape = self.gradients.shape[:2]
        return (flat @ flat.T).view(*shape, *shape)


@dataclass(frozen=True)
class Rows(Layer):
    """A parameter that rows of a layer use, each for one sample.

    Attributes:
        signals: ``[C, J, o]``, the derivatives of the outputs by the ``J`` rows of the layer.
        sample: ``[J]``, the sample of each row; ``None``: row ``j`` belongs to sample ``j``.
        num_samples: ``B``.
    """

    signals: Tensor
    sample: Tensor | None
    num_samples: int

    @abstractmethod
    def similar(self, rows: slice) -> Tensor:
        """``[m, J]``, the inner products of what some rows of the layer read with all others."""

    def of_samples(self, x: Tensor, dim: int) -> Tensor:
        """The sums over the rows of each sample."""
        if self.sample is None:
            return x
        shape = list(x.shape)
        shape[dim] = self.num_samples
        return x.new_zeros(shape).index_add_(dim, self.sample, x)

    def of_rows(self, w: Tensor) -> Tensor:
        """``[C, J]`` from ``[C, B]``."""
        return w if self.sample is None else w.index_select(1, self.sample)

    def kernel(self, constant: float = 0.0) -> Tensor:
        """See :class:`Layer`; with ``constant`` times the kernel of a bias added."""
        signals = self.signals
        outputs, count, width = signals.shape
        flat = signals.reshape(-1, width)
        size = max(1, _BLOCK // (outputs * outputs * max(count, 1)))
        total = signals.new_zeros(outputs, self.num_samples, outputs, self.num_samples)
        for first in range(0, count, size):
            rows = slice(first, min(first + size, count))
            some = signals[:, rows].reshape(-1, width)
            block = (some @ flat.T).view(outputs, -1, outputs, count)
            block *= self.similar(rows).add_(constant)[:, None]
            block = self.of_samples(block, 3)
            if self.sample is None:
                total[:, rows] += block
            else:
                total.index_add_(1, self.sample[rows], block)
        return total


@dataclass(frozen=True)
class Linear(Rows):
    """The weight of a linear layer.

    Attributes:
        inputs: ``[J, i]``.
        transposed: whether the parameter is ``[i, o]``, and not ``[o, i]``.
    """

    inputs: Tensor
    transposed: bool

    def push(self, v: Tensor) -> Tensor:
        """See :class:`Layer`."""
        moved = self.inputs @ (v if self.transposed else v.T)
        return self.of_samples((self.signals * moved).sum(2), 1)

    def pull(self, w: Tensor) -> Tensor:
        """See :class:`Layer`."""
        signal = (self.of_rows(w).unsqueeze(2) * self.signals).sum(0)
        return self.inputs.T @ signal if self.transposed else signal.T @ self.inputs

    def similar(self, rows: slice) -> Tensor:
        """See :class:`Rows`."""
        return self.inputs[rows] @ self.inputs.T


@dataclass(frozen=True)
class LookedUp(Rows):
    """The rows of an embedding table that a batch reads.

    Attributes:
        at: ``[J]``, which of the active rows each look-up reads.
        num_rows: how many active rows there are.
    """

    at: Tensor
    num_rows: int

    def push(self, v: Tensor) -> Tensor:
        """See :class:`Layer`."""
        return self.of_samples((self.signals * v.index_select(0, self.at)).sum(2), 1)

    def pull(self, w: Tensor) -> Tensor:
        """See :class:`Layer`."""
        signal = (self.of_rows(w).unsqueeze(2) * self.signals).sum(0)
        return signal.new_zeros(self.num_rows, signal.shape[1]).index_add_(0, self.at, signal)

    def similar(self, rows: slice) -> Tensor:
        """See :class:`Rows`."""
        return (self.at[rows, None] == self.at).to(self.signals.dtype)
