"""Plain autograd: the least work that gives the result, without checks and without a verdict."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks import _lorraine
from benchmarks._peers.cells import Case
from benchmarks._peers.method import STEP_SIZE, Gradient, Method, NotServed, Setting

# Steps in which conjugate gradients converge at the damping of every case.
_MANY = 100

Vector = tuple[Tensor, ...]
Product = Callable[[Vector], Sequence[Tensor]]


def hypergradient(case: Case, setting: Setting) -> Gradient:
    if setting.kind == "series":
        return lambda: _lorraine.hypergradient(
            case.inner, case.outer, case.params, case.hparams, setting.num, STEP_SIZE
        )

    def gradient() -> Sequence[Tensor]:
        params = case.params
        v = torch.autograd.grad(case.outer(), params, materialize_grads=True)
        first = torch.autograd.grad(case.inner(), params, create_graph=True)

        def product(p: Vector) -> Vector:
            return torch.autograd.grad(first, params, p, retain_graph=True)

        u = conjugate_gradients(damped(product, setting.damping(case)), v, setting.num)
        return _mixed(first, case.hparams, u)

    return gradient


def gauss_newton(case: Case, setting: Setting, *, converged: bool = False) -> Gradient:
    """The same with the Gauss-Newton matrix ``Jᵀ H_outputs J`` in the place of the Hessian.

    ``converged`` makes as many steps of conjugate gradients as rounding allows, instead of the
    setting's number.
    """
    if case.outputs is None or case.of_outputs is None:
        raise NotServed("only the classifiers have outputs")
    outputs_of, losses_of = case.outputs, case.of_outputs

    def gradient() -> Sequence[Tensor]:
        params = case.params
        v = torch.autograd.grad(case.outer(), params)
        outputs = outputs_of(case.model, case.batch)
        losses = losses_of(outputs, case.batch)
        weights = case.weighter(losses.detach(), None)
        first = torch.autograd.grad((weights * losses).mean(), params, create_graph=True)
        # The derivative of Jᵀw by w is J: a product with J is the transpose of one with Jᵀ.
        w = torch.zeros_like(outputs, requires_grad=True)
        transposed = torch.autograd.grad(outputs, params, w, create_graph=True)
        leaf = outputs.detach().requires_grad_(True)
        inner = (weights.detach() * losses_of(leaf, case.batch)).mean()
        by_outputs = torch.autograd.grad(inner, leaf, create_graph=True)

        def product(p: Vector) -> Vector:
            along = torch.autograd.grad(transposed, w, p, retain_graph=True)
            curved = torch.autograd.grad(by_outputs, leaf, along, retain_graph=True)
            return torch.autograd.grad(outputs, params, curved, retain_graph=True)

        if setting.kind == "series":
            u = _series(product, v, setting.num)
        else:
            matrix = damped(product, setting.damping(case))
            rtol = torch.finfo(v[0].dtype).eps if converged else 0.0
            u = conjugate_gradients(matrix, v, _MANY if converged else setting.num, rtol)
        return _mixed(first, case.hparams, u)

    return gradient


def damped(product: Product, damping: float) -> Product:
    def damped(p: Vector) -> Sequence[Tensor]:
        return [a + damping * b for a, b in zip(product(p), p, strict=True)]

    return damped


def conjugate_gradients(product: Product, b: Vector, num_steps: int, rtol: float = 0.0) -> Vector:
    """Hestenes and Stiefel's recurrence; without ``rtol`` it does not look at the residual."""
    u, r, p = tuple(torch.zeros_like(t) for t in b), b, b
    first = squared = _dot(r, r)
    for _ in range(num_steps):
        if rtol and float(squared) <= rtol**2 * float(first):
            break
        q = product(p)
        length = squared / _dot(p, q)
        u = tuple(x + length * y for x, y in zip(u, p, strict=True))
        r = tuple(x - length * y for x, y in zip(r, q, strict=True))
        before, squared = squared, _dot(r, r)
        p = tuple(x + (squared / before) * y for x, y in zip(r, p, strict=True))
    return u


def _series(product: Product, v: Vector, num_terms: int) -> Vector:
    term, total = v, v
    for _ in range(num_terms):
        term = tuple(t - STEP_SIZE * p for t, p in zip(term, product(term), strict=True))
        total = tuple(a + t for a, t in zip(total, term, strict=True))
    return tuple(STEP_SIZE * t for t in total)


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    return torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum()


def _mixed(first: Sequence[Tensor], hparams: list[Tensor], u: Vector) -> list[Tensor]:
    return [-m for m in torch.autograd.grad(first, hparams, u)]


PLAIN = Method("plain autograd", hypergradient)
