"""BOAT: its operators ``NS`` and ``CG``, without its loop and its lower-level optimizer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks._peers.cells import Case
from benchmarks._peers.method import STEP_SIZE, Gradient, Setting


def hypergradient(case: Case, setting: Setting) -> Gradient:
    from boat_torch.na_ol import CG, NS

    params, hparams, damping = case.params, case.hparams, setting.damping(case)

    def inner(*_: object, params: list[Tensor]) -> Tensor:
        loss = case.inner()
        if damping:  # it has none of its own
            loss = loss + 0.5 * damping * sum(p.square().sum() for p in params)
        return loss

    def outer(*_: object, params: list[Tensor]) -> Tensor:
        return case.outer()

    series = setting.kind == "series"
    # The rate of its fixed-point map is the step size of the series. In conjugate gradients it
    # cancels out.
    rate = STEP_SIZE if series else 1.0
    config = {
        "gm_op": [],
        "lower_level_opt": torch.optim.SGD(params, lr=rate),
        "CG": {"tolerance": 0.0, "k": setting.num},
        "GDA": {"alpha_init": 0.0, "alpha_decay": 0.0},
    }
    operator = (NS if series else CG)(
        inner, outer, case.model, case.weighter, params, hparams, config
    )

    def gradient() -> Sequence[Tensor]:
        for p in hparams:
            p.grad = None  # it adds to what is there
        operator.compute_gradients({}, {}, case.model, lower_model_params=params, hparams=hparams)
        return [p.grad for p in hparams]

    return gradient
