"""Influences in float64 without second derivatives, and without the library's solvers.

A product with the Hessian is a central difference of gradients, so it depends on no double
backward. Its error, about 1e-9, is below the rounding of the float32 results it is compared with.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from scipy.sparse.linalg import LinearOperator, minres
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import reweight

# The truncation of a difference is about the square of its step. The rounding of float64 divided
# by the step is 1e-10.
_STEP = 1e-6
# Up to this many parameters the Hessian is computed as a matrix.
_DENSE = 1500


class Reference:
    """The problem of a client in float64, on a copy of its model.

    Args:
        model: is copied.
        losses: as given to ``wrap``.
        outer_loss: as given to ``wrap``.
        optimizer: which parameters are trained, and with which weight decay.
    """

    def __init__(
        self,
        model: nn.Module,
        losses: Callable[[Any, Any], reweight.Losses | Tensor],
        outer_loss: Callable[[Any, Any], Tensor],
        optimizer: torch.optim.Optimizer,
    ) -> None:
        (group,) = optimizer.param_groups
        moved = {id(p) for p in group["params"]}
        names = [name for name, p in model.named_parameters() if id(p) in moved]
        self._model = model_in_double(model)
        self._params = [self._model.get_parameter(name) for name in names]
        self._origin = parameters_to_vector(self._params).detach()
        self._decay = group["weight_decay"]
        self._losses, self._outer_loss = losses, outer_loss

    def influence(self, weights: Tensor, damping: float, batch: Any, dev: Any) -> Tensor:
        """``d outer / d γ_i`` for each sample of ``batch``, shape [B].

        The inner loss is ``fixed + mean(γ·ℓ) + ½·decay·‖θ‖²``.
        """
        batch, dev, weights = in_double(batch), in_double(dev), weights.double()

        def inner(theta: Tensor) -> Tensor:
            losses = self._losses_at(theta, batch)
            return losses.fixed + (weights * losses.weighted).mean()

        def matvec(v: Tensor) -> Tensor:
            product = self._along(lambda theta: self._gradient(lambda: inner(theta)), v)
            return product + (self._decay + damping) * v

        with double_by_default():
            rhs = self._gradient(lambda: self._outer_at(self._origin, dev))
            u = solved(matvec, rhs)
            slopes = self._along(lambda theta: self._losses_at(theta, batch).weighted.detach(), u)
        return -slopes / len(slopes)

    def _losses_at(self, theta: Tensor, batch: Any) -> reweight.Losses:
        vector_to_parameters(theta, self._params)
        found = self._losses(self._model, batch)
        return found if isinstance(found, reweight.Losses) else reweight.Losses(found)

    def _outer_at(self, theta: Tensor, dev: Any) -> Tensor:
        vector_to_parameters(theta, self._params)
        return self._outer_loss(self._model, dev)

    def _gradient(self, loss: Callable[[], Tensor]) -> Tensor:
        grads = torch.autograd.grad(loss(), self._params, materialize_grads=True)
        return parameters_to_vector(grads)

    def _along(self, function: Callable[[Tensor], Tensor], v: Tensor) -> Tensor:
        """The derivative of a function of the parameters in the direction ``v``."""
        step = _STEP * (1.0 + float(self._origin.norm())) / float(v.norm())
        higher, lower = (function(self._origin + sign * step * v) for sign in (1.0, -1.0))
        return (higher - lower) / (2.0 * step)


def solved(matvec: Callable[[Tensor], Tensor], b: Tensor) -> Tensor:
    """The solution of a symmetric system: dense where it is small, by MINRES elsewhere."""
    n = len(b)
    if n <= _DENSE:
        matrix = torch.stack([matvec(column) for column in torch.eye(n, dtype=b.dtype)])
        return torch.linalg.solve((matrix + matrix.T) / 2.0, b)
    operator = LinearOperator((n, n), lambda v: matvec(torch.from_numpy(v)).numpy(), dtype=float)
    u, failed = minres(operator, b.numpy(), rtol=1e-8, maxiter=500)
    if failed:
        raise RuntimeError(f"MINRES has not converged after {failed} steps: raise the damping")
    return torch.from_numpy(u)


def model_in_double(model: nn.Module) -> nn.Module:
    """A float64 copy, with the tensors that modules hold as plain attributes."""
    model = copy.deepcopy(model).double()
    for module in model.modules():
        vars(module).update(
            {k: in_double(x) for k, x in vars(module).items() if torch.is_tensor(x)}
        )
    return model


def in_double(value: Any) -> Any:
    """A batch with its floating-point tensors in float64."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, (tuple, list)):
        return type(value)(map(in_double, value))
    if isinstance(value, dict):
        return {key: in_double(entry) for key, entry in value.items()}
    if hasattr(value, "apply"):  # a graph of torch_geometric
        return copy.copy(value).apply(in_double)
    if hasattr(value, "__dict__"):  # an Interaction of RecBole
        value = copy.copy(value)
        vars(value).update(in_double(vars(value)))
    return value


@contextmanager
def double_by_default() -> Iterator[None]:
    """Tensors that losses make themselves are in float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
