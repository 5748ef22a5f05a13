"""Betty: its hypergradient functions, on the few attributes of its problems that they read.

Its engine and its optimizers do not run, so that what is timed is the hypergradient alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import torch
from torch import Tensor

from benchmarks._peers.cells import Case
from benchmarks._peers.method import STEP_SIZE, Gradient, NotServed, Setting


def hypergradient(case: Case, setting: Setting) -> Gradient:
    from betty.configs import Config
    from betty.hypergradient import cg, neumann

    if setting.kind == "series":
        config = Config(neumann_iterations=setting.num, neumann_alpha=STEP_SIZE)
        return _gradient(case, setting, neumann, config)
    return _gradient(case, setting, cg, Config(cg_iterations=setting.num))


def differences(case: Case, setting: Setting) -> Gradient:
    """Its default, ``"darts"``: a central difference of gradients along the dev gradient."""
    from betty.configs import Config
    from betty.hypergradient import darts

    if setting.num:
        raise NotServed("it has no solver but the identity")
    gradient = _gradient(case, setting, darts, Config())
    return lambda: [STEP_SIZE * g for g in gradient()]


def _gradient(case: Case, setting: Setting, function: object, config: object) -> Gradient:
    params, hparams, damping = case.params, case.hparams, setting.damping(case)

    def loss(batch: object) -> Tensor:
        inner = case.inner()
        if damping:  # it has none of its own
            inner = inner + 0.5 * damping * sum(p.square().sum() for p in params)
        return inner

    current = SimpleNamespace(
        config=config,
        paths=[],
        cur_batch=case.batch,
        training_step_exec=loss,
        parameters=lambda: params,
        trainable_parameters=lambda: params,
        meta_trainable_parameters=lambda: params,
        _strategy="default",
    )
    previous = SimpleNamespace(trainable_parameters=lambda: hparams, _strategy="default")

    def gradient() -> Sequence[Tensor]:
        vector = torch.autograd.grad(case.outer(), params)
        return function(vector, current, previous, False)

    return gradient
