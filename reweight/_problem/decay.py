"""The weight decay of the inner optimizer, which is part of the inner problem."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.optim import Optimizer


def weight_decay(optimizer: Optimizer, params: Mapping[str, Tensor]) -> dict[str, float]:
    """The curvature that the optimizer's weight decay gives each parameter, by name.

    An optimizer with coupled weight decay ``λ`` descends ``inner + ½λ‖θ‖²``, which no graph of the
    inner loss shows; its Hessian is ``H + λI``. Decoupled decay counts as the same ``λ``, which is
    exact for SGD and an approximation for the adaptive steps of AdamW. The value is read at every
    outer step, because schedules change it.

    Raises:
        ValueError: a parameter is in no group of the optimizer, or is maximised.
    """
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    missing = [name for name, p in params.items() if id(p) not in groups]
    if missing:
        raise ValueError(
            f"the optimizer does not hold {', '.join(missing[:3])} "
            f"({len(missing)} of {len(params)} inner parameters): it was built from another model "
            "or before parameters were replaced, or it trains only some of them; in that case "
            "pass inner_params=lambda name: ... to name those it trains"
        )
    if any(groups[id(p)].get("maximize") for p in params.values()):
        raise ValueError(
            "the optimizer has maximize=True, but the inner problem is a minimisation: negate the "
            "loss and leave maximize off"
        )
    return {name: float(groups[id(p)].get("weight_decay") or 0.0) for name, p in params.items()}
