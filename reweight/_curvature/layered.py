"""The Jacobian of a model's outputs, from what the layers of the model keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from reweight._curvature.gauss_newton import Jacobian, Outputs
from reweight._curvature.layer_graph import layers_of
from reweight._curvature.layers import PerSample, Rows
from reweight._tables import Table
from reweight._tensors import Tree, alone


class LayeredJacobian:
    """The Jacobian of outputs from what the layers of the model keep.

    Args:
        outputs: the model's outputs, ``[B, ...]`` each, with their graph.
        loss: the inner loss; its graph holds theirs.
        params: θ, leaves.
        tables: entries of θ that the outputs read by rows.

    Raises:
        ValueError: a layer that is not served.
    """

    def __init__(
        self, outputs: Outputs, loss: Tensor, params: Tree, tables: Mapping[str, Table]
    ) -> None:
        if not alone():
            raise ValueError(
                "SampleSpace() solves in the space of one process's samples, and this run has "
                "several processes: use ConjugateGradient()"
            )
        self._outputs = outputs
        self.layers = layers_of(outputs, loss, params, tables)
        self.rows = {name: tables[name].rows for name in self.layers if name in tables}

    def push(self, v: Tree, shift: Mapping[str, float] | None = None) -> Tensor:
        """``J v``, ``[C, B]``; ``J Λ⁻¹ v`` where a shift is given."""
        parts = [layer.push(v[name]) for name, layer in self.layers.items()]
        if shift is not None:
            parts = [part / shift[name] for part, name in zip(parts, self.layers, strict=True)]
        return torch.stack(parts).sum(0)

    def pull(self, w: Tensor) -> Tree:
        """``Jᵀ w`` for ``w`` ``[C, B]``."""
        return {name: layer.pull(w) for name, layer in self.layers.items()}

    def kernel(self, shift: Mapping[str, float]) -> Tensor:
        """``J Λ⁻¹ Jᵀ``, ``[C, B, C, B]``."""
        biases = {x.beside: n for n, x in self.layers.items() if isinstance(x, PerSample)}
        total: Tensor | None = None
        for name, layer in self.layers.items():
            if isinstance(layer, PerSample) and layer.beside:
                continue  # in one pass with the weight
            if isinstance(layer, Rows) and name in biases:
                part = layer.kernel(shift[name] / shift[biases[name]])
            else:
                part = layer.kernel()
            part.div_(shift[name])
            total = part if total is None else total.add_(part)
        assert total is not None
        return total

    def split(self, w: Tensor) -> Outputs:
        """``[C, B]`` in the form of the outputs."""
        sizes = [z[0].numel() for z in self._outputs]
        parts = zip(torch.split(w, sizes), self._outputs, strict=True)
        return tuple(part.T.reshape(z.shape).to(z.dtype) for part, z in parts)

    def joined(self, outputs: Sequence[Tensor | None]) -> Tensor:
        """``[C, B]`` from something in the form of the outputs; ``None`` is zero."""
        pairs = zip(outputs, self._outputs, strict=True)
        parts = [torch.zeros_like(z) if x is None else x for x, z in pairs]
        return torch.cat([part.flatten(1).T if part.ndim > 1 else part[None] for part in parts])

    def jacobian(self) -> Jacobian:
        """The same products, for outputs in their own form."""
        return Jacobian(
            tuple(self.layers),
            lambda v: self.split(self.push(v)),
            lambda w: self.pull(self.joined(w)),
            rows=self.rows,
        )
