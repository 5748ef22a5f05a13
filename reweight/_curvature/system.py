"""The linear system of one outer step, before a way to multiply with its matrix is chosen."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor
from torch.optim import Optimizer

from reweight._curvature.failure import ModeFailed, guarded, record
from reweight._curvature.linearise import (
    Gradients,
    Linearisation,
    Mode,
    Objective,
    from_graph,
    of_constant,
    with_finite_difference,
    with_func,
)
from reweight._curvature.stated import Stated
from reweight._tables import Table, pick
from reweight._tensors import AttemptError, Tree, agree
from reweight.preconditioning import Preconditioner, diagonal_of


@dataclass(frozen=True)
class Function:
    """The inner loss as a function of θ and φ, evaluated anew at each call.

    Attributes:
        objective: ``(θ, φ) -> []``, a pure function, also inside transforms of ``torch.func``.
        params: θ, where it is linearised; rows in the place of tables.
        rows: the rows that stand for tables, by name.
    """

    objective: Objective
    params: Tree
    rows: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Slope:
    """The first derivatives of the inner loss, evaluated anew at each call.

    Attributes:
        gradients: ``(θ, φ) -> (∇θ inner, ∂inner/∂φ)``.
        params: see :class:`Function`.
        rows: see :class:`Function`.
    """

    gradients: Gradients
    params: Tree
    rows: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class System:
    """``(H + shift) u = v`` with ``H = ∂²inner/∂θ²``, and the mixed derivative by φ.

    Attributes:
        params: θ, leaves.
        hparams: φ, leaves.
        loss: gives the inner loss with its graph; called by mode ``"autograd"``.
        function: gives the inner loss as a function; called by mode ``"func"``.
        slope: gives its first derivatives; called by mode ``"finite_difference"``.
        tables: entries of θ that ``loss()`` reads by rows, with these rows.
        constants: for some entries of θ a mask ``[...]`` of their shape, 1 where the entry is free
            and 0 where it is a constant, which has no row and no column in ``H``.
        shift: curvature per entry of θ that the inner loss does not have: the damping, and the
            optimizer's weight decay.
        preconditioner: as the user stated it.
        optimizers: the inner optimizers, which a preconditioner may read.
        outputs: the loss as a function of the model's outputs. Where it is given, ``H`` is the
            Gauss-Newton matrix.
    """

    params: Tree
    hparams: Tree
    loss: Callable[[], Tensor]
    function: Callable[[], Function]
    slope: Callable[[], Slope]
    tables: Mapping[str, Table] = field(default_factory=dict)
    constants: Mapping[str, Tensor] = field(default_factory=dict)
    shift: Mapping[str, float] = field(default_factory=dict)
    preconditioner: Preconditioner | None = None
    optimizers: Sequence[Optimizer] = ()
    outputs: Stated | None = None

    def linearise(self, mode: Mode) -> Linearisation:
        """The second derivatives of the inner loss, in this mode."""
        if self.outputs is not None:
            return self.outputs.linearise(mode, self.params, self.hparams, self.tables)
        if mode == "autograd":
            return from_graph(self.loss(), self.params, self.hparams, self.tables)
        if mode == "func":
            function = self.function()
            if not function.params:
                return of_constant(self.hparams)
            found = with_func(function.objective, function.params, self.hparams)
            return dataclasses.replace(found, rows=function.rows)
        slope = self.slope()
        if not slope.params:
            return of_constant(self.hparams, doubt=0.0)
        found = with_finite_difference(slope.gradients, slope.params, self.hparams)
        return dataclasses.replace(found, rows=slope.rows)

    def linearisations(
        self, modes: Iterable[Mode], failures: dict[Mode, BaseException]
    ) -> Iterator[tuple[Mode, Linearisation]]:
        """The linearisations in those modes that work, each made when it is asked for.

        Args:
            modes: the modes, in the order to try.
            failures: modes to leave out, with the reason; those that do not work are added.
        """
        for mode in modes:
            if mode in failures:
                continue
            try:
                with guarded():
                    linearisation = self.linearise(mode)
                agree()
            except (ModeFailed, AttemptError) as failure:
                record(failures, mode, failure)
            else:
                yield mode, linearisation

    def diagonal(self, linearisation: Linearisation) -> Tree | None:
        """``D`` of the preconditioner over what the linearisation covers, or ``None``."""
        params = {name: self.params[name] for name in linearisation.params}
        return diagonal_of(self.preconditioner, self.optimizers, params, linearisation.rows)

    def free(self, linearisation: Linearisation) -> Tree:
        """Masks over what the linearisation covers: 0 where an entry is a constant."""
        rows = linearisation.rows
        return {
            name: pick(mask, rows[name]) if name in rows else mask
            for name, mask in self.constants.items()
            if name in linearisation.params
        }
