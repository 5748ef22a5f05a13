"""The Gauss-Newton system, solved in the space of the samples; see ``SampleSpace``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from reweight._curvature.gauss_newton import Jacobian, OutputHessian, Outputs
from reweight._curvature.layer_graph import layers_of, unit_outputs
from reweight._tables import Table
from reweight._tensors import Tree, alone, axpy, dot, norm

# Rounding errors of what is compared, in units of rounding. Both sides are sums of products.
_ROUNDING = 1e4


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

    def push(self, v: Tree) -> Tensor:
        """``J v``, ``[C, B]``."""
        parts = [layer.push(v[name]) for name, layer in self.layers.items()]
        return torch.stack(parts).sum(0)

    def pull(self, w: Tensor) -> Tree:
        """``Jᵀ w`` for ``w`` ``[C, B]``."""
        return {name: layer.pull(w) for name, layer in self.layers.items()}

    def kernel(self, shift: Mapping[str, float]) -> Tensor:
        """``J Λ⁻¹ Jᵀ``, ``[C, B, C, B]``, in float64."""
        total: Tensor | float = 0.0
        for name, layer in self.layers.items():
            total = total + layer.kernel().double() / shift[name]
        assert isinstance(total, Tensor)
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


def solved_in_sample_space(
    layered: LayeredJacobian,
    curvature: OutputHessian,
    pull: Callable[[Sequence[Tensor | None]], Tree],
    outputs: Outputs,
    b: Tree,
    shift: Mapping[str, float],
) -> tuple[Tree, float]:
    """``u = (Jᵀ H_out J + Λ)⁻¹ b``, and a lower bound of the largest eigenvalue.

    Args:
        layered: ``J``.
        curvature: ``H_out``.
        pull: ``w -> Jᵀ w`` by a backward pass. It does not know of layers or samples, so it also
            shows whether ``layered`` is right.
        outputs: the model's outputs.
        b: the right-hand side.
        shift: ``Λ`` by name.

    Raises:
        ValueError: ``Λ`` is not positive, the loss is not convex in the outputs, or one sample
            depends on the outputs or the rows of another.
    """
    if flat := [name for name in b if not shift[name] > 0.0]:
        raise ValueError(
            f"SampleSpace() divides by weight decay plus damping, and for {flat[0]!r} both are 0: "
            "set ImplicitHypergradient(damping=...) above 0"
        )
    eps = max(torch.finfo(x.dtype).eps for x in b.values())
    root = _root(_blocks(layered, curvature, outputs, eps), eps)
    scaled = {name: x / shift[name] for name, x in b.items()}
    along = layered.push(scaled)
    count = along.numel()
    matrix = torch.einsum("bxr,xbyd,dys->brds", root, layered.kernel(shift), root)
    matrix = matrix.reshape(count, count)
    matrix.diagonal().add_(1.0)
    right = torch.einsum("bxr,xb->br", root, along.double()).reshape(count, 1)
    found = torch.cholesky_solve(right, torch.linalg.cholesky(matrix)).view(root.shape[:2])
    weights = torch.einsum("bxr,br->xb", root, found).to(along.dtype)
    pulled = pull(layered.split(weights))
    _check_rows(layered, weights, along, pulled, scaled, eps)
    u = {name: axpy(-1.0 / shift[name], pulled[name], x) for name, x in scaled.items()}
    return u, min(shift[name] for name in b) * float(matrix.diagonal().max())


def _blocks(
    layered: LayeredJacobian, curvature: OutputHessian, outputs: Outputs, eps: float
) -> Tensor:
    """``H_out`` as one block per sample, ``[B, C, C]``, in float64."""
    units = unit_outputs(outputs)
    columns = [
        layered.joined(curvature.product([unit[i] for unit in units]))
        for i in range(len(units[0]))
    ]
    blocks = torch.stack(columns).double().permute(2, 1, 0)
    generator = torch.Generator().manual_seed(0)
    shape = blocks.shape[1], blocks.shape[0]
    probe = torch.randn(shape, generator=generator, dtype=torch.float64).to(blocks)
    found = layered.joined(curvature.product(layered.split(probe))).double()
    expected = torch.einsum("bxy,yb->xb", blocks, probe)
    if norm(found - expected) > _ROUNDING * eps * max(norm(expected), norm(found)):
        raise ValueError(
            "SampleSpace() needs losses of which each depends on the outputs of its own sample "
            "only, row by row, and these mix samples (a contrastive loss, a norm over the batch): "
            "use ConjugateGradient()"
        )
    return (blocks + blocks.mT) / 2.0


def _root(blocks: Tensor, eps: float) -> Tensor:
    """``R`` with ``R Rᵀ`` the blocks, ``[B, C, C]``."""
    values, vectors = torch.linalg.eigh(blocks)
    lowest, largest = float(values.min()), float(values.abs().max())
    if lowest < -_ROUNDING * eps * largest:
        raise ValueError(
            f"SampleSpace() needs a loss that is convex in the outputs, and its Hessian by the "
            f"outputs of a sample has an eigenvalue of {lowest:.3g}: a negative weight, or a loss "
            "such as a bounded one; use ConjugateGradient() with damping"
        )
    return vectors * values.clamp_min(0.0).sqrt().unsqueeze(1)


def _check_rows(
    layered: LayeredJacobian,
    weights: Tensor,
    along: Tensor,
    pulled: Tree,
    v: Tree,
    eps: float,
) -> None:
    """Raise where the layers' ``J`` is not the transpose of the backward pass.

    ``⟨w, J v⟩ = ⟨Jᵀ w, v⟩``, with both products made already.
    """
    inside, outside = dot(weights.double().flatten(), along.double().flatten()), dot(pulled, v)
    sizes = norm(weights) * norm(along) + norm(pulled) * norm(v)
    if not math.isfinite(inside - outside):
        return  # reported with the names of the parameters by whoever looks at the solution
    if abs(inside - outside) > _ROUNDING * eps * sizes:
        raise ValueError(
            "SampleSpace() needs layers whose rows are those of the samples, one after the other, "
            "and here outputs of one sample depend on rows of another: BatchNorm in training "
            "(model.eval(), or another norm), batch_first=False, attention over the batch; or use "
            "ConjugateGradient()"
        )
