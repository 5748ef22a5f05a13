"""The damped Gauss-Newton system, solved in the space of the samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from reweight.solvers.base import LinearSolver, Solution


@dataclass(frozen=True)
class SampleSpace(LinearSolver):
    r"""``u = (Jᵀ H J + Λ)⁻¹ b`` exactly, by a system of the size of the outputs.

    With ``J`` ``[B·C, |θ|]`` the derivative of the ``C`` outputs of ``B`` samples, ``H = R Rᵀ`` the
    Hessian of the loss by these outputs, ``Λ`` weight decay and damping, and the kernel
    ``K = J Λ⁻¹ Jᵀ``, the identity of Woodbury gives

    .. math:: u = Λ^{-1} (b - J^T R (I + R^T K R)^{-1} R^T J Λ^{-1} b).

    For a linear layer, ``K`` is a product of activations times one of output gradients, so nothing
    of the size of ``J`` or of ``θ²`` is made. The time is that of a backward pass per output and of
    a few more; memory is quadratic in ``B·C``.

    It takes ``ImplicitHypergradient(SampleSpace(), damping, curvature="gauss_newton")`` under
    :func:`reweight.wrap`, with a damping or a weight decay above 0 for every inner parameter. It
    serves parameters of linear layers, embedding tables, biases and layer norms, by what the graph
    of the outputs shows. Other layers, losses that are not convex in the outputs, and outputs of
    one sample that depend on another one (``BatchNorm`` in training) are refused in words.

    Example:
        >>> import torch, reweight
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Linear(3, 1)
        >>> def losses(model, batch):
        ...     x, y = batch
        ...     return reweight.Losses.of(model(x), lambda z: (z.squeeze(-1) - y).square())
        >>> rw = reweight.wrap(
        ...     model, reweight.LossWeighter(), losses,
        ...     outer_loss=lambda model, batch: losses(model, batch).weighted.mean(),
        ...     hypergradient=reweight.ImplicitHypergradient(
        ...         SampleSpace(), damping=0.1, curvature="gauss_newton"))
        >>> batch = torch.randn(8, 3), torch.randn(8)
        >>> rw.hypergradient(batch, batch).info.trustworthy
        True
    """

    def solve_scaled(self, matvec: Callable[[Tensor], Tensor], b: Tensor, eps: float) -> Solution:
        """Not possible: products alone do not tell the layers.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            "SampleSpace() solves from the layers of a model, not from products with a matrix: use "
            'it as ImplicitHypergradient(SampleSpace(), damping=..., curvature="gauss_newton") '
            "under reweight.wrap, or take ConjugateGradient()"
        )
