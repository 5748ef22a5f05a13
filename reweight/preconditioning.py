"""A diagonal change of variables that improves the conditioning of the linear system."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from reweight._tables import pick
from reweight._tensors import Tree, all_entries, some

# What second moments are computed from; the processes of a sharded model read it in this order.
_READ = ("step", "exp_avg_sq", "max_exp_avg_sq", "square_avg", "grad_avg", "sum")


@dataclass(frozen=True)
class SecondMoments:
    """The diagonal ``D = lr/(√v̂ + ε)`` of an adaptive optimizer, read from its state.

    ``v̂`` are the second moments of the gradient: ``exp_avg_sq`` of Adam and AdamW with its bias
    correction (``max_exp_avg_sq`` with ``amsgrad``), RMSprop's ``square_avg`` (centered or not), or
    Adagrad's ``sum``; ``lr`` and ``ε`` are those of the parameter's group. ``D`` is the step that
    such an optimizer takes per unit of a constant gradient.

    Pass it as ``ImplicitHypergradient(preconditioner=...)``. Then ``Neumann(num_terms=K,
    step_size=1.0)`` is ``Σ_{n=0..K} (I − DA)ⁿ D b``, the derivative through ``K + 1`` steps
    ``θ ← θ − D∇``: the optimizer's steps with constant moments and without momentum;
    ``ConjugateGradient`` is preconditioned conjugate gradients; and ``Identity`` gives ``D·b``, the
    rule of SAMA (Choe et al., "Making Scalable Meta Learning Practical", NeurIPS 2023) at a
    minimum, up to the constant factor of Adam's first moment.

    Entries whose second moment is zero, as in embedding rows that no batch has looked up yet, get
    the mean second moment of the other entries in the system: ``lr/ε`` would be larger than
    anything else in it.

    Example:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
        >>> optimizer = torch.optim.Adam([w], lr=0.1, eps=0.0)
        >>> (w * torch.tensor([1.0, 4.0])).sum().backward()
        >>> optimizer.step()
        >>> SecondMoments().diagonal(optimizer, {"w": w})["w"]      # lr / |gradient|
        tensor([0.1000, 0.0250])
    """

    def diagonal(
        self,
        optimizer: Optimizer | Sequence[Optimizer] | None,
        params: Mapping[str, Tensor],
        rows: Mapping[str, Tensor] | None = None,
    ) -> Tree:
        """``D`` by the names of ``params``, in their shapes; every entry is positive.

        With ``rows`` (int64 ``[r]`` by name), only these rows of some parameters are read. Several
        optimizers may each hold some of the parameters.

        Raises:
            ValueError: no optimizer, one without second moments, or one that has not yet stepped.
        """
        optimizers = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer or ())
        if not optimizers:
            raise ValueError(
                "SecondMoments() reads the inner optimizer's state, and there is none here: pass "
                "wrap(..., optimizer=optimizer); outside of wrap, pass a dict of tensors as "
                "preconditioner"
            )
        rows = rows or {}
        held = {
            id(p): (each, group)
            for each in reversed(optimizers)
            for group in each.param_groups
            for p in group["params"]
        }
        found = {
            name: _moments_of_rows(*held[id(p)], p, rows.get(name))
            for name, p in params.items()
            if id(p) in held and held[id(p)][0].state.get(p)
        }
        sums = [(float(v.double().sum()), float((v > 0.0).sum())) for v in found.values()]
        own = torch.tensor([sum(each) for each in zip((0.0, 0.0), *sums, strict=True)]).double()
        total, count = all_entries(own).tolist()
        if rows and not total > 0.0:
            # No step has touched any of these rows: take the mean over all rows.
            whole = self.diagonal(optimizers, params)
            return {name: _rows_of(entry, rows.get(name)) for name, entry in whole.items()}
        if not count or not total > 0.0:
            raise ValueError(
                "SecondMoments() found no second moments in "
                f"{some({type(each).__name__: each for each in optimizers})} for "
                f"{some(params)}: it has not made a step yet (take an inner step before the first "
                "outer one), or it is not an adaptive optimizer"
            )
        diagonal: Tree = {}
        for name, parameter in params.items():
            group = held[id(parameter)][1] if id(parameter) in held else optimizers[0].defaults
            moments = found.get(name)
            if moments is None:
                moments = torch.zeros_like(_rows_of(parameter.detach(), rows.get(name)))
            size = torch.where(moments > 0.0, moments, total / count).sqrt()
            diagonal[name] = float(group["lr"]) / (size + float(group.get("eps", 0.0)))
        return diagonal


def _moments_of_rows(
    optimizer: Optimizer, group: dict[str, Any], parameter: Tensor, rows: Tensor | None
) -> Tensor:
    """``v̂`` of one parameter, or of some of its rows."""
    state = optimizer.state[parameter]
    read: dict[str, Any] = {}
    # Only these: entries of a sharded parameter are gathered when they are read.
    for key in filter(state.__contains__, _READ):
        entry = state[key]
        of_rows = isinstance(entry, Tensor) and entry.shape == parameter.shape
        read[key] = _rows_of(entry, rows) if of_rows else entry
    return _second_moments(optimizer, group, read, state)


def _second_moments(
    optimizer: Optimizer, group: dict[str, Any], state: dict[str, Any], kept: Iterable[str]
) -> Tensor:
    """``v̂`` of one parameter; zero where there is none yet."""
    kind = type(optimizer).__name__
    if kind not in ("NAdam", "RAdam"):  # their schedules and rectification change the step
        moments: Tensor
        if "exp_avg_sq" in state:
            moments = state.get("max_exp_avg_sq", state["exp_avg_sq"])
            forgotten: float = float(group["betas"][1]) ** float(state["step"])
            return moments / (1.0 - forgotten)
        if "square_avg" in state and "acc_delta" not in kept:  # "acc_delta" means Adadelta
            moments = state["square_avg"]
            if group.get("centered"):
                moments = moments - state["grad_avg"].square()
            return moments
        if "sum" in state:
            # lr/(1 + (t - 1)·lr_decay) over √v, put into the moments.
            decayed = 1.0 + (float(state["step"]) - 1.0) * float(group.get("lr_decay", 0.0))
            moments = state["sum"]
            return moments * decayed**2
    raise ValueError(
        "SecondMoments() reads the second moments of Adam, AdamW, RMSprop or Adagrad; "
        f"{kind} keeps {', '.join(map(repr, kept)) or 'none'}. Leave the preconditioner out, or "
        "pass a dict of tensors"
    )


Preconditioner = SecondMoments | Mapping[str, Tensor]


def _rows_of(x: Tensor, rows: Tensor | None) -> Tensor:
    return x if rows is None else pick(x, rows)


def diagonal_of(
    preconditioner: Preconditioner | None,
    optimizers: Sequence[Optimizer],
    params: Tree,
    rows: Mapping[str, Tensor] | None = None,
) -> Tree | None:
    """The checked diagonal for a solve over ``params``, or over some rows of some of them."""
    if preconditioner is None:
        return None
    rows = rows or {}
    if isinstance(preconditioner, SecondMoments):
        diagonal = preconditioner.diagonal(optimizers, params, rows)
    else:
        missing = [name for name in params if name not in preconditioner]
        if missing:
            raise ValueError(
                f"preconditioner has no entry for {some(dict.fromkeys(missing))}: it needs a "
                "tensor for each of params, by the same names"
            )
        for name, parameter in params.items():
            if preconditioner[name].shape != parameter.shape:
                raise ValueError(
                    f"preconditioner[{name!r}] has shape {tuple(preconditioner[name].shape)}, but "
                    f"the parameter has {tuple(parameter.shape)}"
                )
        diagonal = {n: _rows_of(preconditioner[n].detach(), rows.get(n)) for n in params}
    for name, entry in diagonal.items():
        if not bool((entry > 0.0).all() & entry.isfinite().all()):
            raise ValueError(
                f"preconditioner[{name!r}] must be positive and finite everywhere, because it is "
                "the diagonal of a change of variables. A learning rate of 0 makes it zero"
            )
    return diagonal
