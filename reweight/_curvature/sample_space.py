"""The Gauss-Newton system, solved in the space of the samples; see ``SampleSpace``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from reweight._curvature.gauss_newton import OutputHessian, Outputs
from reweight._curvature.layer_graph import unit_outputs
from reweight._curvature.layered import LayeredJacobian
from reweight._tensors import Tree, norm, read

# Rounding errors of what is compared, in units of rounding. Both sides are sums of products.
_ROUNDING = 1e4
# A solution is refined where rounding errors would grow to this share of it.
_AMPLIFIED = 3e-7


def solved_in_sample_space(
    layered: LayeredJacobian,
    curvature: OutputHessian,
    pull: Callable[[Sequence[Tensor | None]], Tree],
    outputs: Outputs,
    b: Tree,
    shift: Mapping[str, float],
    out: Tree,
) -> float:
    """Write ``u = (Jᵀ H_out J + Λ)⁻¹ b``; return a lower bound of the largest eigenvalue.

    Args:
        layered: ``J``.
        curvature: ``H_out``.
        pull: ``w -> Jᵀ w`` by a backward pass. It does not know of layers or samples, so it also
            shows whether ``layered`` is right.
        outputs: the model's outputs.
        b: the right-hand side.
        shift: ``Λ`` by name.
        out: takes ``u``.

    Raises:
        ValueError: ``Λ`` is not positive, the loss is not convex in the outputs, or one sample
            depends on the outputs or the rows of another.
        FloatingPointError: the Hessian by the outputs is not finite.
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
    compared = _compared(weights, along, pulled, b, shift)
    apart, size, amplification = read(torch.cat([compared, reduced.amplification[None]]))[0]
    # Not finite: reported with the names of the parameters by whoever looks at the solution.
    if abs(apart) > _ROUNDING * eps * size:
        _check_rows(abs(apart), pulled, b, shift, eps)
    for name, x in b.items():
        torch.sub(x, pulled[name], out=out[name]).mul_(1.0 / shift[name])
    del pulled
    if amplification * eps > _AMPLIFIED:
        # b and what is subtracted from it cancel: one step of iterative refinement. The residual
        # is Jᵀ(weights − H_out J u), so it is known in the space of the samples.
        missing = torch.einsum("bxy,yb->xb", blocks, layered.push(out).double()) - weights
        for name, x in layered.pull(reduced.corrected(missing).to(along.dtype)).items():
            out[name].sub_(x, alpha=1.0 / shift[name])
    return min(shift[name] for name in b) * amplification


class _Reduced:
    """The system ``(I + H_out K) q = right`` of the size of the outputs, in float64.

    Args:
        root: ``R`` with ``R Rᵀ = H_out``, ``[B, C, C]``.
        kernel: ``K``, ``[C, B, C, B]``.

    Attributes:
        amplification: a lower bound of the largest eigenvalue of ``I + Rᵀ K R``, still on its
            device.
    """

    def __init__(self, root: Tensor, kernel: Tensor) -> None:
        self._root, self._kernel = root, kernel
        size = root.shape[0] * root.shape[1]
        matrix = torch.einsum("bxr,xbyd,dys->brds", root, kernel, root).reshape(size, size)
        matrix.diagonal().add_(1.0)
        # Not checked: at least the identity, or not finite, and so is the solution then.
        self._factor = torch.linalg.cholesky_ex(matrix).L
        self.amplification = matrix.diagonal().max()

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
    sizes = torch.stack([x.norm() for x in (found - expected, found, expected)])
    (apart, *both) = read(sizes)[0]
    if not math.isfinite(apart):
        raise FloatingPointError(
            "the Hessian of the inner loss by the model's outputs is not finite: the loss has an "
            "infinite second derivative there, as a root or a logarithm has at 0"
        )
    if apart > _ROUNDING * eps * max(both):
        raise ValueError(
            "SampleSpace() needs losses of which each depends on the outputs of its own sample "
            "only, row by row, and these mix samples (a contrastive loss, a norm over the batch): "
            "use ConjugateGradient()"
        )
    return (blocks + blocks.mT) / 2.0


def _root(blocks: Tensor, eps: float) -> Tensor:
    """``R`` with ``R Rᵀ`` the blocks, ``[B, C, C]``."""
    values, vectors = torch.linalg.eigh(blocks)
    lowest, largest = read(torch.stack([values.min(), values.abs().max()]))[0]
    if lowest < -_ROUNDING * eps * largest:
        raise ValueError(
            f"SampleSpace() needs a loss that is convex in the outputs, and its Hessian by the "
            f"outputs of a sample has an eigenvalue of {lowest:.3g}: a negative weight, or a loss "
            "such as a bounded one; use ConjugateGradient() with damping"
        )
    root: Tensor = vectors * values.clamp_min(0.0).sqrt().unsqueeze(1)
    return root


def _compared(
    weights: Tensor, along: Tensor, pulled: Tree, b: Tree, shift: Mapping[str, float]
) -> Tensor:
    """How far the layers' ``J`` is from the transpose of the backward pass, and beside what size.

    ``⟨w, J Λ⁻¹ b⟩ = ⟨Jᵀ w, Λ⁻¹ b⟩``, with both products made already.
    """
    products = [
        torch.dot(pulled[name].reshape(-1), x.reshape(-1)).to(along.device, torch.float64)
        / shift[name]
        for name, x in b.items()
    ]
    w, v = weights.to(along.dtype).double().flatten(), along.double().flatten()
    return torch.stack([torch.dot(w, v) - sum(products), w.norm() * v.norm()])


def _check_rows(
    apart: float, pulled: Tree, b: Tree, shift: Mapping[str, float], eps: float
) -> None:
    """Raise where a difference of inner products is beyond rounding."""
    sizes = sum(norm(pulled[name]) * norm(x) / shift[name] for name, x in b.items())
    if apart > _ROUNDING * eps * sizes:
        raise ValueError(
            "SampleSpace() needs layers whose rows are those of the samples, one after the other, "
            "and here outputs of one sample depend on rows of another: BatchNorm in training "
            "(model.eval(), or another norm), batch_first=False, attention over the batch; or use "
            "ConjugateGradient()"
        )
