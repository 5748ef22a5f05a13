"""The linear system of one outer step, before a way to multiply with its matrix is chosen."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from torch import Tensor
from torch.optim import Optimizer

from reweight._curvature.linearise import (
    Linearisation,
    Mode,
    Objective,
    from_graph,
    with_finite_difference,
    with_func,
)
from reweight._tables import Table
from reweight._tensors import Tree
from reweight.preconditioning import Preconditioner, diagonal_of


@dataclass(frozen=True)
class Function:
    """The inner loss as a function of θ and φ, evaluated anew at each call.

    Attributes:
        objective: ``(θ, φ) -> []``, without side effects.
        params: θ, where it is linearised; rows in the place of tables.
        rows: the rows that stand for tables, by name.
        installed: a context that is open around an evaluation at θ and its backward pass.
    """

    objective: Objective
    params: Tree
    rows: Mapping[str, Tensor] = field(default_factory=dict)
    installed: Callable[[Tree], AbstractContextManager[None]] = lambda params: nullcontext()


@dataclass(frozen=True)
class System:
    """``(H + shift) u = v`` with ``H = ∂²inner/∂θ²``, and the mixed derivative by φ.

    Attributes:
        params: θ, leaves.
        hparams: φ, leaves.
        loss: the inner loss with its graph; ``None`` where mode ``"autograd"`` is not wanted.
        function: makes the inner loss a function; called by the modes that evaluate it anew.
        tables: entries of θ that ``loss`` reads by rows, with these rows.
        shift: curvature per entry of θ that the inner loss does not have: the damping, and the
            optimizer's weight decay.
        preconditioner: as the user stated it.
        optimizer: the inner optimizer, which a preconditioner may read.
    """

    params: Tree
    hparams: Tree
    loss: Tensor | None
    function: Callable[[], Function]
    tables: Mapping[str, Table] = field(default_factory=dict)
    shift: Mapping[str, float] = field(default_factory=dict)
    preconditioner: Preconditioner | None = None
    optimizer: Optimizer | None = None

    def linearise(self, mode: Mode) -> Linearisation:
        """The second derivatives of the inner loss, in this mode."""
        if mode == "autograd":
            if self.loss is None:
                raise RuntimeError("the inner loss was not evaluated for mode 'autograd'")
            return from_graph(self.loss, self.params, self.hparams, self.tables)
        function = self.function()
        objective, params, hparams = function.objective, function.params, self.hparams
        if mode == "func":
            linearisation = with_func(objective, params, hparams)
        else:
            linearisation = with_finite_difference(objective, params, hparams, function.installed)
        return dataclasses.replace(linearisation, rows=function.rows)

    def diagonal(self, linearisation: Linearisation) -> Tree | None:
        """``D`` of the preconditioner over what the linearisation covers, or ``None``."""
        params = {name: self.params[name] for name in linearisation.params}
        return diagonal_of(self.preconditioner, self.optimizer, params, linearisation.rows)
