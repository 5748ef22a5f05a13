"""A hypergradient by autograd alone: Lorraine et al. (AISTATS 2020), Algorithms 2 and 3.

Nothing is checked and nothing is known of the answer: the least work that gives it, to compare
with. Algorithm 3 leaves out the factor ``α`` of the series; here it is part of the answer.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def hypergradient(
    inner: Callable[[], Tensor],
    outer: Callable[[], Tensor],
    params: list[Tensor],
    hparams: list[Tensor],
    num_terms: int,
    step_size: float,
) -> tuple[Tensor, ...]:
    """By ``hparams``, through the minimiser of ``inner`` over ``params``.

    ``outer`` depends on ``hparams`` through ``params`` only.
    """
    v = torch.autograd.grad(outer(), params, materialize_grads=True)
    gradient = torch.autograd.grad(inner(), params, create_graph=True)
    term, total = v, v
    for _ in range(num_terms):
        product = torch.autograd.grad(gradient, params, term, retain_graph=True)
        term = tuple(torch.sub(t, p, alpha=step_size) for t, p in zip(term, product, strict=True))
        total = tuple(a + t for a, t in zip(total, term, strict=True))
    u = tuple(step_size * a for a in total)
    mixed = torch.autograd.grad(gradient, hparams, u)
    return tuple(-m for m in mixed)
