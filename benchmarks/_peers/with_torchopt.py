"""TorchOpt: its ``custom_root`` with one of its linear solvers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks._peers.cells import Case
from benchmarks._peers.method import STEP_SIZE, Gradient, Setting


def hypergradient(case: Case, setting: Setting) -> Gradient:
    from torchopt.diff.implicit import custom_root
    from torchopt.linear_solve import solve_cg, solve_inv

    # It calls functorch.vjp, which is deprecated.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torchopt")
    if setting.kind == "series":
        solver = solve_inv(ns=True, maxiter=setting.num, alpha=STEP_SIZE)
    else:
        solver = solve_cg(ridge=setting.damping(case), maxiter=setting.num, rtol=0.0)
    both = _Both(case)
    names = [name for name, _ in both.named_parameters()]
    params = tuple(p.detach() for p in case.params)
    hparams = tuple(case.hparams)

    def evaluate(loss: Callable[[], Tensor], theta: Any, phi: Any) -> Tensor:
        tensors = dict(zip(names, (*theta, *phi), strict=True))
        return torch.func.functional_call(both, tensors, (loss,))

    def inner(theta: Any, phi: Any) -> Tensor:
        return evaluate(case.inner, theta, phi)

    @custom_root(torch.func.grad(inner, argnums=0), argnums=1, solve=solver)
    def solution(theta: Any, phi: Any) -> Any:
        return theta

    def gradient() -> Sequence[Tensor]:
        return torch.autograd.grad(
            evaluate(case.outer, solution(params, hparams), hparams), hparams
        )

    return gradient


class _Both(nn.Module):
    """Model and weighter as one module, so that ``functional_call`` reaches both."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.model, self.weighter = case.model, case.weighter

    def forward(self, loss: Callable[[], Tensor]) -> Tensor:
        return loss()
