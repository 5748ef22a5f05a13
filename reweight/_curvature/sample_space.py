"""The Gauss-Newton system, solved in the space of the samples; see ``SampleSpace``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from reweight._curvature.gauss_newton import Jacobian, OutputHessian, Outputs
from reweight._curvature.layer_graph import layers_of, unit_outputs
from reweight._curvature.layers import PerSample, Rows
from reweight._tables import Table
from reweight._tensors import Tree, alone, norm, read

# Rounding errors of what is compared, in units of rounding. Both sides are sums of products.
_ROUNDING = 1e4
# A solution is refined where rounding errors would grow to this share of it.
_AMPLIFIED = 3e-7


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
    blocks = _blocks(layered, curvature, outputs, eps)
    reduced = _Reduced(_root(blocks, eps), layered.kernel(shift).double())
    along = layered.push(b, shift)
    weights = reduced.solve(along.double())
    pulled = pull(layered.split(weights))
    _check_rows(weights.to(along), along, pulled, b, shift, eps)
    u = {name: torch.sub(x, pulled[name]).mul_(1.0 / shift[name]) for name, x in b.items()}
    if reduced.amplification * eps > _AMPLIFIED:
        # b and what is subtracted from it cancel: one step of iterative refinement. The residual
        # is Jᵀ(weights − H_out J u), so it is known in the space of the samples.
        missing = torch.einsum("bxy,yb->xb", blocks, layered.push(u).double()) - weights
        for name, x in layered.pull(reduced.corrected(missing).to(along.dtype)).items():
            u[name].sub_(x, alpha=1.0 / shift[name])
    return u, min(shift[name] for name in b) * reduced.amplification


class _Reduced:
    """The system ``(I + H_out K) q = right`` of the size of the outputs, in float64.

    Args:
        root: ``R`` with ``R Rᵀ = H_out``, ``[B, C, C]``.
        kernel: ``K``, ``[C, B, C, B]``.

    Attributes:
        amplification: a lower bound of the largest eigenvalue of ``I + Rᵀ K R``.
    """

    def __init__(self, root: Tensor, kernel: Tensor) -> None:
        self._root, self._kernel = root, kernel
        size = root.shape[0] * root.shape[1]
        matrix = torch.einsum("bxr,xbyd,dys->brds", root, kernel, root).reshape(size, size)
        matrix.diagonal().add_(1.0)
        self._factor = torch.linalg.cholesky(matrix)
        self.amplification = float(matrix.diagonal().max())

    def solve(self, along: Tensor) -> Tensor:
        """``q`` for ``right = H_out along``."""
        root = self._root
        right = torch.einsum("bxr,xb->br", root, along).reshape(-1, 1)
        found = torch.cholesky_solve(right, self._factor).view(root.shape[:2])
        return torch.einsum("bxr,br->xb", root, found)

    def corrected(self, right: Tensor) -> Tensor:
        """``q`` for any right-hand side: ``right − H_out (I + K H_out)⁻¹ K right``."""
        return right - self.solve(torch.einsum("xbyd,yd->xb", self._kernel, right))


def _blocks(
    layered: LayeredJacobian, curvature: OutputHessian, outputs: Outputs, eps: float
) -> Tensor:
    """``H_out`` as one block per sample, ``[B, C, C]``, in float64."""
    units = unit_outputs(outputs)
    columns = [
        layered.joined(curvature.product([unit[i] for unit in units])) for i in range(len(units[0]))
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
    root: Tensor = vectors * values.clamp_min(0.0).sqrt().unsqueeze(1)
    return root


def _check_rows(
    weights: Tensor, along: Tensor, pulled: Tree, b: Tree, shift: Mapping[str, float], eps: float
) -> None:
    """Raise where the layers' ``J`` is not the transpose of the backward pass.

    ``⟨w, J Λ⁻¹ b⟩ = ⟨Jᵀ w, Λ⁻¹ b⟩``, with both products made already.
    """
    products = [
        torch.dot(pulled[name].reshape(-1), x.reshape(-1)).to(along.device, torch.float64)
        / shift[name]
        for name, x in b.items()
    ]
    w, v = weights.double().flatten(), along.double().flatten()
    apart, size = read(torch.stack([torch.dot(w, v) - sum(products), w.norm() * v.norm()]))[0]
    # Not finite: reported with the names of the parameters by whoever looks at the solution.
    if not abs(apart) > _ROUNDING * eps * size:
        return
    # The exact size of rounding errors takes more than the comparison.
    sizes = sum(norm(pulled[name]) * norm(x) / shift[name] for name, x in b.items())
    if abs(apart) > _ROUNDING * eps * sizes:
        raise ValueError(
            "SampleSpace() needs layers whose rows are those of the samples, one after the other, "
            "and here outputs of one sample depend on rows of another: BatchNorm in training "
            "(model.eval(), or another norm), batch_first=False, attention over the batch; or use "
            "ConjugateGradient()"
        )
