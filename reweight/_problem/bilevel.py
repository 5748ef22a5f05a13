"""The bilevel problem, as the user stated it to ``wrap``."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from reweight._curvature import Partial, Solved, System, solve
from reweight._problem.arguments import check_arguments
from reweight._problem.audit import Audit
from reweight._problem.decay import weight_decay
from reweight._problem.fresh import FreshBatches
from reweight._problem.inner import UNTOUCHED, InnerProblem
from reweight._problem.isolation import Isolation, isolated, twice_differentiable
from reweight._problem.notices import Notices, Silent
from reweight._problem.progress import Progress
from reweight._problem.statement import check_modules, check_parameters
from reweight._problem.weights import through_weighter, weigh
from reweight._tables import looked_up, reached, refuse_reentrant, tables_of
from reweight._tensors import Tree, check_loss
from reweight.hypergradient import (
    Hypergradient,
    ImplicitHypergradient,
    assembled,
    outer_gradients,
)
from reweight.losses import Losses
from reweight.verdict import SolveInfo
from reweight.weighters import SampleWeighter

logger = logging.getLogger("reweight")

LossesFn = Callable[[Any, Any], "Losses | Tensor"]
OuterFn = Callable[[Any, Any], Tensor]
Reduction = Literal["mean", "sum"]


class BilevelProblem:
    """A model, a weighter and two losses: inner ``fixed + reduce(weights · losses)``, and outer.

    See :func:`reweight.wrap` for the arguments, which become attributes.
    """

    def __init__(
        self,
        model: nn.Module,
        weighter: SampleWeighter,
        losses: LossesFn | None,
        outer_loss: OuterFn | None,
        optimizer: Optimizer | None,
        inner_params: Callable[[str], bool] | None,
        reduction: Reduction,
    ) -> None:
        check_arguments(model, weighter, losses, outer_loss, optimizer, inner_params)
        if reduction not in ("mean", "sum"):
            raise ValueError(f'reduction={reduction!r}: choose "mean" or "sum"')
        self.model = model
        self.weighter = weighter
        self.optimizer = optimizer
        self.reduction: Reduction = reduction
        self.audit = Audit()
        self._losses_fn, self._outer_fn = losses, outer_loss
        self._inner_params = inner_params
        self._notices = Notices()
        self.progress = Progress(self._notices)
        self._graphs_checked = False
        check_modules(model)
        theta, _ = self.parameters()
        self.weight_decay(theta)  # raises now rather than at the first outer step

    def in_double(
        self, strategy: ImplicitHypergradient
    ) -> tuple[BilevelProblem, ImplicitHypergradient]:
        """The same problem on float64 copies of the modules; it audits anew and does not warn.

        Its optimizer holds the weight decay of the original and nothing else. The strategy is
        copied together with the modules, since a user's solver may hold them.
        """
        twin = copy.copy(self)
        model, weighter, strategy = copy.deepcopy((self.model, self.weighter, strategy))
        twin.model, twin.weighter = model.double(), weighter.double()
        twin.audit, twin._notices, twin._graphs_checked = Audit(), Silent(), False
        twin.progress = Progress(twin._notices)
        decay = self.weight_decay(self.theta())
        groups = [
            {"params": [p], "weight_decay": decay.get(name, 0.0)}
            for name, p in twin.theta().items()
        ]
        twin.optimizer = torch.optim.SGD(groups, lr=1.0)
        return twin, strategy

    # -- parameters ----------------------------------------------------------------------------

    def theta(self) -> Tree:
        """The inner parameters, by their names in the model."""
        keep = self._inner_params or (lambda name: True)
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad and keep(n)}

    def phi(self) -> Tree:
        """The parameters of the weighter, by their names."""
        return {n: p for n, p in self.weighter.named_parameters() if p.requires_grad}

    def parameters(self) -> tuple[Tree, Tree]:
        """Both, checked: they may have changed since the last outer step."""
        theta, phi = self.theta(), self.phi()
        check_parameters(self.model, self.weighter, theta, phi)
        return theta, phi

    def weight_decay(self, theta: Tree) -> dict[str, float]:
        """The optimizer's weight decay by name; empty without an optimizer."""
        return {} if self.optimizer is None else weight_decay(self.optimizer, theta)

    def devices(self) -> set[torch.device]:
        """The devices of all parameters."""
        return {p.device for p in (*self.theta().values(), *self.phi().values())}

    # -- losses and weights --------------------------------------------------------------------

    def losses(self, batch: Any) -> Losses:
        """The losses of a batch, with their graph.

        Raises:
            ValueError: losses that are reduced already, or not finite.
        """
        losses = self._evaluated(batch)
        losses.check_finite()
        return losses

    def weights(self, losses: Losses) -> Tensor:
        """The weights ``[B]`` for losses, with their graph.

        Raises:
            ValueError: weights that are not finite or of another shape.
        """
        return weigh(self.weighter, losses)

    def inner_loss(self, losses: Losses, weights: Tensor) -> Tensor:
        """``fixed + reduce(weights · losses)``."""
        total = (weights * losses.weighted).sum()
        if self.reduction == "mean":
            # A batch without weighted samples contributes nothing, rather than 0/0.
            total = total / max(losses.weighted.numel(), 1)
        fixed = losses.fixed
        return total + (fixed.reshape(()) if isinstance(fixed, Tensor) else fixed)

    def outer_loss(self, dev_batch: Any) -> Tensor:
        """The outer loss of a dev batch, with its graph."""
        loss: object
        if self._outer_fn is not None:
            loss = self._outer_fn(self.model, dev_batch)
        elif callable(getattr(self.model, "outer_loss", None)):
            loss = self.model.outer_loss(dev_batch)  # type: ignore[operator]
        else:
            loss = torch.as_tensor(self._evaluated(dev_batch).fixed)
        return check_loss("outer", loss)

    def _evaluated(self, batch: Any) -> Losses:
        losses: object
        if self._losses_fn is not None:
            losses = self._losses_fn(self.model, batch)
        else:
            losses = self.model.losses(batch)  # type: ignore[operator]
        if isinstance(losses, Losses):
            return losses
        if isinstance(losses, Tensor):
            return Losses(losses)
        raise TypeError(
            "losses(model, batch) must return reweight.Losses or a tensor [B], got "
            f"{type(losses).__name__}"
        )

    # -- one outer step ------------------------------------------------------------------------

    def hypergradient(
        self,
        batch: Any,
        dev_batch: Any,
        strategy: ImplicitHypergradient,
        batches: Iterable[Any] | None = None,
    ) -> Hypergradient:
        """The hypergradient on a train batch and a dev batch, without side effects.

        See :meth:`reweight.Reweighted.hypergradient`; ``strategy`` says how to solve.
        """
        theta, phi = self.parameters()
        # The rows that one batch reads are not those that further batches read.
        tables = tables_of(self.model, theta) if batches is None else {}
        devices = {p.device for p in (*theta.values(), *phi.values())}
        with isolated((self.model, self.weighter), devices) as isolation:
            rhs, direct = self.outer_gradients(theta, phi, tables, dev_batch)
            isolation.restore()
            # Around the backward passes too: a checkpointed module runs again in them.
            with twice_differentiable():
                losses = self.losses(batch)
                weights = self.weights(losses)
                inner = self._inner(batch, losses, weights, theta, tables, isolation)
                self._check_graph(inner)
                system, fresh = self.system(inner, strategy), self._fresh(inner, strategy, batches)
                failures = dict(self.audit.ruled_out)
                linearisations = self.audit.accepted(
                    system.linearisations(strategy.modes, failures),
                    failures,
                    inner,
                    auto=strategy.hvp == "auto",
                )
                solved = solve(system, rhs, strategy.solver, linearisations, failures, fresh)
            del linearisations  # the last one holds the graph of the inner gradient
            self.audit.note(failures)
            influence = _influence(solved)
            indirect = through_weighter(
                self.weighter, phi, weights, influence, direct, self._notices, self.progress
            )
            why = f"the weights of {type(self.weighter).__name__} have no finite derivative here"
            grads = assembled(direct, indirect, phi, why)
        caveat = self.audit.caveats.get(solved.info.hvp_mode, "")
        info = dataclasses.replace(solved.info, caveat=caveat)
        self._notify(info, strategy)
        return Hypergradient(grads, info, influence)

    def outer_gradients(
        self, theta: Tree, phi: Tree, tables: Tree, dev_batch: Any
    ) -> tuple[Tree, Partial]:
        """``∂outer/∂θ``, sparse for tables of which it reads rows, and ``∂outer/∂φ``.

        Raises:
            ValueError: the outer loss depends on no inner parameter.
        """
        loss = self.outer_loss(dev_batch)
        if not self._graphs_checked:
            refuse_reentrant("outer_loss", loss)
        rhs, direct = outer_gradients(loss, theta, phi, looked_up(loss, tables))
        if rhs is None:
            raise ValueError(
                "the outer loss does not depend on any inner parameter: losses(model, batch) has "
                "no fixed part to take it from (pass outer_loss=), or it is computed under "
                "no_grad() or from a detached output, or inner_params leaves out what it uses"
            )
        return rhs, direct

    def system(self, inner: InnerProblem, strategy: ImplicitHypergradient) -> System:
        """The linear system of an inner problem."""
        decay = self.weight_decay(inner.theta)
        return System(
            params=inner.theta,
            hparams={"weights": inner.weights},
            loss=lambda: inner.loss,
            function=inner.function,
            tables=inner.tables,
            shift={n: decay.get(n, 0.0) + strategy.damping for n in inner.theta},
            preconditioner=strategy.preconditioner,
            optimizer=self.optimizer,
        )

    def _inner(
        self,
        batch: Any,
        losses: Losses,
        weights: Tensor,
        theta: Tree,
        tables: Tree,
        isolation: Isolation,
    ) -> InnerProblem:
        leaf = weights.detach().requires_grad_(True)

        def evaluate(batch: Any, weights: Tensor) -> Tensor:
            return self.inner_loss(self._evaluated(batch), weights)

        loss = self.inner_loss(losses, leaf)
        return InnerProblem(self.model, evaluate, batch, leaf, loss, theta, tables, isolation)

    def _fresh(
        self, inner: InnerProblem, strategy: ImplicitHypergradient, batches: Iterable[Any] | None
    ) -> FreshBatches | None:
        """The systems of further batches, made one by one."""
        if batches is None:
            return None

        def system(batch: Any) -> System:
            inner.isolation.restore()
            losses = self.losses(batch)
            with torch.no_grad():
                weights = self.weights(losses)
            problem = self._inner(batch, losses, weights, inner.theta, {}, inner.isolation)
            return self.system(problem, strategy)

        return FreshBatches(batches, system, inner.isolation)

    def _check_graph(self, inner: InnerProblem) -> None:
        """Look once for parts of the inner loss that have no hypergradient."""
        if self._graphs_checked or not inner.weights.numel():
            return
        refuse_reentrant("losses", inner.loss)
        for name in reached(inner.loss, self.phi()):
            raise ValueError(
                f"the losses depend on the weighter's {name} in another way than through the "
                "weights: a module that the weighter shares with the model, or a penalty in "
                "Losses(fixed=...). Freeze it, give the weighter a copy, or put the penalty "
                "into outer_loss"
            )
        self._graphs_checked = True

    def _notify(self, info: SolveInfo, strategy: ImplicitHypergradient) -> None:
        """Warn once of what the user should know, and log the rest."""
        logger.debug(info.message)
        if info.hvp_mode == "finite_difference" and strategy.hvp == "auto":
            known = self.audit.ruled_out.items()
            reasons = "; ".join(f"{mode}: {error}" for mode, error in known)
            self._notices.warn(
                "finite_difference",
                "the Hessian is multiplied by finite differences of gradients, good to two to "
                f"five digits in float32, because no other mode works for this model ({reasons})",
            )
        if info.caveat:
            self._notices.warn("caveat", info.message)
        if info.alarming:
            self._notices.warn(info.status.name, info.message)


def _influence(solved: Solved) -> Tensor:
    """``[B]``: the derivative of the outer loss by each weight."""
    influence = solved.indirect["weights"]
    if influence is None:
        raise ValueError(UNTOUCHED)
    return influence
