"""Gradient hooks on inner parameters: which entries they freeze, and which they move elsewhere.

A hook that clips or rescales a gradient changes the step of the optimizer, not the point at which
the gradient is zero. A hook that masks entries freezes them: they are constants of the inner
problem. Any other hook makes the optimizer stop somewhere else than at a minimum of the inner loss.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from reweight._problem.companions import referred, refers_to
from reweight._problem.objects import Objects, is_mutable
from reweight._tensors import Tree

_Hook = Callable[[Any], Any]
# Gradients that hooks are tried on: normal entries of several sizes, and one of equal sign.
_SIZES = (1e-4, 1.0, 1e2)


@dataclass(frozen=True)
class Hooked:
    """What the hooks on inner parameters do.

    Attributes:
        free: by name a mask of the parameter's shape, 0 where a hook always gives zero; only for
            parameters with such entries.
        strange: by name, what another hook does to the gradient, in words.
    """

    free: Tree = field(default_factory=dict)
    strange: dict[str, str] = field(default_factory=dict)

    @property
    def faults(self) -> list[str]:
        """What is wrong with a formula that knows nothing of these hooks."""
        return [
            f"a gradient hook on {name} {fault}, so that training does not stop where the gradient "
            "of the inner loss is zero, which the formula assumes"
            for name, fault in self.strange.items()
        ]


class GradientHooks:
    """The hooks on inner parameters, collected before they are taken off.

    Args:
        theta: the inner parameters.
    """

    def __init__(self, theta: Tree) -> None:
        self._of: dict[str, tuple[Tensor, list[_Hook], list[_Hook]]] = {}
        for name, p in theta.items():
            after = getattr(p, "_post_accumulate_grad_hooks", None)
            if p._backward_hooks or after:
                self._of[name] = p, _callables(p._backward_hooks), _callables(after)

    def __bool__(self) -> bool:
        return bool(self._of)

    def effect(self) -> Hooked:
        """Call the hooks on made-up gradients and look at what they return.

        Lists, dicts and arrays that the hooks refer to are put back: norms of made-up gradients are
        nothing to record.
        """
        every = [hook for _, hooks, after in self._of.values() for hook in (*hooks, *after)]
        recorded = Objects(referred(every, is_mutable))
        try:
            return self._effect()
        finally:
            recorded.restore()

    def _effect(self) -> Hooked:
        free: Tree = {}
        strange: dict[str, str] = {}
        for name, (p, hooks, after) in self._of.items():
            try:
                mask, fault = _effect(p, functools.partial(_through, p, hooks, after))
            except Exception as error:
                fault = f"can't be called to see what it does ({error})"
            if fault:
                strange[name] = fault
            elif mask is not None:
                free[name] = mask
        return Hooked(free, strange)


def _effect(p: Tensor, through: Callable[[Tensor], Tensor]) -> tuple[Tensor | None, str]:
    """The mask of the entries that hooks let through, if they freeze some; or a fault in words."""
    generator = torch.Generator().manual_seed(0)
    passed = torch.zeros(p.shape, dtype=torch.bool, device=p.device)
    stopped = torch.zeros_like(passed)
    probes = [size * torch.randn(p.shape, generator=generator) for size in _SIZES]
    # A projection, such as a gradient without its mean, turns the signs of small entries here.
    probes.append(1.0 + 0.5 * torch.rand(p.shape, generator=generator))
    for probe in probes:
        given = probe.to(p)
        got = through(given.clone())
        if got.shape != given.shape:
            return None, f"returns a gradient of shape {tuple(got.shape)}"
        stopped |= got == 0
        passed |= got != 0
        if bool((got * given < 0).any()):
            return None, "turns the sign of entries of the gradient"
        if not bool(got.isfinite().all()):
            return None, "returns gradients that are not finite"
    # An entry that was stopped once and passed once was clipped or dropped, which is a step.
    frozen = stopped & ~passed
    return (~frozen).to(p.dtype) if bool(frozen.any()) else None, ""


def _through(p: Tensor, hooks: list[_Hook], after: list[_Hook], grad: Tensor) -> Tensor:
    for hook in hooks:
        changed = hook(grad)
        if changed is not None:
            grad = changed
    if not after:
        return grad
    own = p.grad
    try:
        p.grad = grad
        for hook in after:
            # One that steps an optimizer is the user's step, and must not be taken now.
            if not refers_to(hook, Optimizer):
                _without_step(p, hook)
        return torch.zeros_like(grad) if p.grad is None else p.grad
    finally:
        p.grad = own


def _without_step(p: Tensor, hook: _Hook) -> None:
    """Call a hook; where it moves the parameter, it is an optimizer's step, which is taken back."""
    values = p.detach().clone()
    grad = None if p.grad is None else p.grad.clone()
    hook(p)
    if not torch.equal(p.detach(), values):
        p.data.copy_(values)
        # The step used the gradient up, by setting it to None or zero.
        p.grad = grad


def _callables(hooks: Any) -> list[_Hook]:
    return list(hooks.values()) if hooks else []
