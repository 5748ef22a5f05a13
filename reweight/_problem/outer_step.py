"""One outer step: the hypergradient of a bilevel problem on a train batch and a dev batch."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from reweight._curvature import Partial, Solved, solve
from reweight._problem.along import Along
from reweight._problem.bilevel import BilevelProblem
from reweight._problem.compiled import CompiledStep, only_eager
from reweight._problem.direction import by_backward, direction_of, moves_padding
from reweight._problem.examined import caveats_of, remarks_on
from reweight._problem.first_order import FirstOrder
from reweight._problem.fresh import FreshBatches
from reweight._problem.functional import FunctionalModel
from reweight._problem.hooks import GradientHooks, Hooked
from reweight._problem.in_shards import InShards, serves
from reweight._problem.inner import UNTOUCHED, InnerProblem, padding_rows
from reweight._problem.isolation import (
    Isolation,
    differentiable,
    twice_differentiable,
)
from reweight._problem.lazy import build
from reweight._problem.processes import (
    CHECK_EVERY,
    due_on_any,
    inner_modules,
    of_all,
    told_by_any,
    unequal,
)
from reweight._problem.sharded import both, check_fresh, on_a_plain_model
from reweight._problem.shares import shares_of
from reweight._problem.statement import check_batch, check_memory, check_optimizers
from reweight._problem.systems import Systems
from reweight._problem.ways import Ways
from reweight._problem.weights import through_weighter
from reweight._tables import Graph, GraphInputs, looked_up, tables_of
from reweight._tensors import (
    Pending,
    Tree,
    digest,
    max_abs,
    shared,
    sharing,
    some,
    stored,
    tensors_in,
    uninterrupted,
)
from reweight.hypergradient import (
    Hypergradient,
    ImplicitHypergradient,
    assembled,
    outer_gradients,
)
from reweight.solvers import Identity
from reweight.verdict import SolveInfo, Way

logger = logging.getLogger("reweight")

# The weights with their graph, the influence of each sample, and the verdict.
_Found = tuple[Tensor, Tensor, SolveInfo]


@uninterrupted
def hypergradient(
    problem: BilevelProblem,
    batch: Any,
    dev_batch: Any,
    strategy: ImplicitHypergradient,
    batches: Iterable[Any] | None = None,
) -> Hypergradient:
    """The hypergradient on a train batch and a dev batch, without side effects.

    See :meth:`reweight.Reweighted.hypergradient`; ``strategy`` says how to solve.
    """
    with problem.together():
        problem.begun += 1
        for name, value in (("batch", batch), ("dev_batch", dev_batch)):
            check_batch(name, value)
        batch, dev_batch = differentiable(batch), differentiable(dev_batch)
        parts = problem.parts()
        with inner_modules(parts):
            build(problem, parts, batch)
            check_fresh(problem, parts, batches)
            in_shards = None if batches is not None else serves(problem, parts, strategy)
            if in_shards is not None:
                return _in_shards(problem, in_shards, batch, dev_batch, strategy)
            passes = both(batch, dev_batch)
            with on_a_plain_model(problem, parts, passes, (batch, dev_batch)) as plain:
                step = _OuterStep(plain, parts, batch, dev_batch, strategy)
                with step.isolated() as isolation:
                    result = step.run(isolation, batches)
                return step.judged(result, isolation)


def _in_shards(
    problem: BilevelProblem,
    in_shards: InShards,
    batch: Any,
    dev_batch: Any,
    strategy: ImplicitHypergradient,
) -> Hypergradient:
    """A first-order step that moves sharded parameters where they lie."""
    with in_shards.shards.local(list(in_shards.originals.values())) as stand_ins:
        local = problem.standing_in(stand_ins, named=in_shards.originals)
        step = _OuterStep(local, in_shards.parts, batch, dev_batch, strategy, in_shards)
        with step.isolated() as isolation:
            result = step.run(isolation, None)
        return step.judged(result, isolation)


@uninterrupted
def weights(problem: BilevelProblem, batch: Any) -> Tensor:
    """The weights ``[B]`` of a batch, without gradient and without side effects."""
    check_batch("batch", batch)
    batch = differentiable(batch)
    parts = problem.parts()
    # The processes of a sharded model evaluate it together.
    together = problem.together() if problem.shards(parts) is not None else nullcontext()
    with together, inner_modules(parts):
        build(problem, parts, batch)
        passes = (lambda now: now.evaluated(batch),)
        with on_a_plain_model(problem, parts, passes, (batch,)) as plain, sharing(None):
            return _weights(plain, parts, batch)


def _weights(problem: BilevelProblem, parts: list[nn.Module], batch: Any) -> Tensor:
    look = problem.guard.is_new(tuple(part.training for part in parts))
    problem.guard.objects = problem.mutable(parts)
    with (
        problem.isolated(parts, problem.theta(), (batch,), look=look) as isolation,
        isolation.watched(),
    ):
        return problem.weights(problem.losses(batch)).detach()


class _OuterStep:
    """What one outer step works with.

    Args:
        problem: the problem.
        parts: every module that an evaluation may use.
        batch: the train batch.
        dev_batch: the dev batch.
        strategy: how to solve.
        in_shards: for a first-order step on parameters in shards.
    """

    def __init__(
        self,
        problem: BilevelProblem,
        parts: list[nn.Module],
        batch: Any,
        dev_batch: Any,
        strategy: ImplicitHypergradient,
        in_shards: InShards | None = None,
    ) -> None:
        self._problem, self._strategy, self._in_shards = problem, strategy, in_shards
        self._batch, self._dev_batch = batch, dev_batch
        self._theta, self._phi = problem.parameters()
        self._parts = parts
        self._given = [*tensors_in(batch), *tensors_in(dev_batch)]
        # Whether to look at the problem, or to rely on what was found in earlier steps.
        self._look = problem.audit.begin(self._fingerprint(), self._fingerprint_in_words())
        self._findings = problem.audit.findings
        self._shares = shares_of(batch, dev_batch, problem.notices)
        # Whether the outer loss depends on an inner parameter, on this process's samples.
        self._has_outer = True
        self._caveats: list[str] = []
        # Not by the steps of the audit, which a process that raises early does not reach.
        if problem.begun % CHECK_EVERY == 1:
            # Shards differ between the processes.
            theta = {} if in_shards else self._theta
            self._caveats += unequal(theta, self._phi, problem.model, self._stated())
        self._pending = Pending()
        # The mode that a compiled step was compared with, if this is one.
        self._compared = ""
        # Collected now: while the losses are isolated, there are none. Tried in every step, since
        # a mask may change in place.
        self._hooks = problem.hooks or GradientHooks(self._theta)
        self._hooked = Hooked()
        self._failures: dict[Way, str] = {}
        if self._look:
            check_memory(self._theta)
            problem.guard.objects = problem.mutable(parts)

    def isolated(self) -> AbstractContextManager[Isolation]:
        """A context without side effects."""
        batches = self._batch, self._dev_batch
        # A pass that gathers parameters writes into memory that is freed after it.
        look = self._look and self._in_shards is None
        return self._problem.isolated(self._parts, self._theta, batches, look=look)

    def run(self, isolation: Isolation, batches: Iterable[Any] | None) -> Hypergradient:
        """The hypergradient, by a compiled program where there is one for this step."""
        compiled = self._compiled(batches)
        if compiled is None:
            return self._eagerly(isolation, batches)
        if not compiled.is_due():
            found = compiled.run()
            if found is not None:
                self._compared = compiled.mode
                return found
            isolation.restore()
        result = self._eagerly(isolation, batches)
        random = isolation.has_drawn
        isolation.restore()
        known = self._known_against(result.info.hvp_mode)
        compiled.learn(result, lambda: self._inner(isolation), known, random=random)
        return result

    def _eagerly(self, isolation: Isolation, batches: Iterable[Any] | None) -> Hypergradient:
        """Evaluate, solve, and go through the weighter."""
        problem, theta = self._problem, self._theta
        # The rows that one batch reads are not those that further batches read.
        tables = tables_of(self._parts, theta) if batches is None else {}
        with isolation.watched():
            if self._hooks:
                self._hooked = self._hooks.effect()
                isolation.restore()
            outer = self._outer_loss()
        outer_graph = Graph(outer)
        rhs, direct = self._outer_gradients(outer, outer_graph, tables)
        found = None
        if batches is None and self._strategy.ways:
            found = self._without_hessian(rhs, outer.detach(), outer_graph, isolation)
        leaves = outer_graph.leaves
        del outer, outer_graph
        if found is None:
            found = self._with_hessian(rhs, leaves, tables, batches, isolation)
        # Known now: something else works, so these errors are not those of the losses.
        self._findings.no_way.update(self._failures)
        weights, influence, info = found
        if info.hvp_mode == "none":
            if not of_all(float(self._has_outer))[0]:
                self._refuse_outer()
            if max_abs(stored(rhs)) == 0.0:
                self._look_for_underflow(isolation)
        name = type(problem.weighter).__name__
        # Around the backward pass too: a checkpointed module runs again in it.
        with twice_differentiable():
            indirect = through_weighter(
                problem.weighter,
                self._phi,
                weights,
                influence,
                direct,
                problem.notices,
                problem.progress,
                self._pending,
            )
        why = f"the weights of {name} have no finite derivative here"
        grads = assembled(direct, indirect, self._phi, why, self._pending)
        self._pending.read()
        return Hypergradient(grads, info, influence)

    def _outer_loss(self) -> Tensor:
        """This process's part of the outer loss."""
        share = self._shares.outer
        if share == 0.0:  # a batch without rows, whose mean would be NaN
            return torch.zeros((), device=next(iter(self._theta.values())).device)
        outer = self._problem.outer_loss(self._dev_batch, self._pending)
        return outer if share == 1.0 else share * outer

    def _look_for_underflow(self, isolation: Isolation) -> None:
        """Note where a gradient of the outer loss that is zero is lost to its precision."""
        if self._in_shards is not None:
            return
        isolation.restore()
        with twice_differentiable(), sharing(None):
            loss = self._outer_loss()
            if not loss.requires_grad:
                return
            # A power of two rounds nothing, and loses nothing to the other end of the range.
            larger = 2.0 ** (math.frexp(torch.finfo(loss.dtype).max)[1] // 2)
            grads = torch.autograd.grad(
                loss, list(self._theta.values()), loss.new_full((), larger), allow_unused=True
            )
        if any(bool(g.any()) for g in grads if g is not None):
            self._caveats.append(
                "the gradient of the outer loss underflows: it is zero in "
                f"{loss.dtype}, and not where the loss is multiplied by {larger:.3g}. Multiply the "
                "outer loss by a large number, or compute it in float64"
            )

    def _with_hessian(
        self,
        rhs: Tree,
        leaves: dict[int, Any],
        tables: Tree,
        batches: Iterable[Any] | None,
        isolation: Isolation,
    ) -> _Found:
        problem = self._problem
        isolation.restore()
        # Around the backward passes too: a checkpointed module runs again in them.
        with twice_differentiable():
            with isolation.watched():
                losses = problem.losses(self._batch, self._pending)
                weights = problem.weights(losses, self._pending)
            systems = self._systems(isolation)
            self._shares = self._shares.with_losses(len(weights))
            inner = systems.inner(self._batch, losses, weights, tables, self._shares)
            if inner.weights.numel():
                inner.graph.refuse_reentrant("losses")
            self._look_at(inner, leaves)
            solved = self._solved(systems, inner, rhs, batches)
        return weights, _influence(solved, weights), solved.info

    def _without_hessian(
        self, rhs: Tree, loss: Tensor, outer: Graph, isolation: Isolation
    ) -> _Found | None:
        """A first-order step; ``None`` where the Hessian's path has to be taken."""
        problem, strategy, theta = self._problem, self._strategy, self._theta
        if self._in_shards is not None:
            found = self._in_shards.step(
                problem, strategy, self._batch, isolation, rhs, loss, self._shares, self._pending
            )
            return found.weights, found.influence, found.info
        assert isinstance(strategy.solver, Identity)  # no other solver has ways
        problem.audit.meet(outer.kinds, outer.reached(theta))
        direction = direction_of(
            rhs, loss, theta, self._hooked.free, strategy.preconditioner, problem.optimizers
        )
        if not direction.values or moves_padding(direction, padding_rows(self._parts, theta)):
            return None
        model = FunctionalModel(self._parts, theta, {})
        along = Along(lambda: problem.evaluated(self._batch), model, isolation)
        ways = Ways(problem.audit, along, lambda: self._mixture(outer.leaves, isolation))
        auto = strategy.hvp == "auto"
        first_order = FirstOrder(problem, along, ways, self._pending, self._shares)
        step = first_order.step(direction, strategy.ways, auto=auto)
        self._failures = first_order.failures
        if step is None:
            return None
        # The influence is linear in u: a factor of u would take a copy of θ's size.
        return step.weights, strategy.solver.step_size * step.influence, step.info

    def _mixture(self, leaves: dict[int, Any], isolation: Isolation) -> InnerProblem:
        """A random mixture of the losses, with its graph; the graph is looked at."""
        problem = self._problem
        isolation.restore()
        tables = tables_of(self._parts, self._theta)
        with twice_differentiable(), isolation.watched():
            losses = problem.losses(self._batch)
        weights = torch.ones_like(losses.weighted)
        inner = self._systems(isolation).inner(self._batch, losses, weights, tables)
        self._look_at(inner, leaves)
        # Later steps have no graph to look at.
        self._findings.remarks = list(dict.fromkeys((*self._findings.remarks, *self._caveats)))
        factors = 0.5 + torch.rand(len(losses.weighted), generator=torch.Generator().manual_seed(3))
        weights = factors.to(losses.weighted).requires_grad_(True)

        def evaluate(batch: Any, weights: Tensor) -> Tensor:
            return (weights * problem.evaluated(batch).weighted).sum()

        return InnerProblem(
            parts=self._parts,
            evaluate=evaluate,
            batch=self._batch,
            weights=weights,
            loss=(weights * losses.weighted).sum(),
            theta=self._theta,
            tables=tables,
            isolation=isolation,
        )

    def judged(self, result: Hypergradient, isolation: Isolation) -> Hypergradient:
        """The result with everything that is known against it, after the isolation is closed."""
        audit, mode = self._problem.audit, self._compared or result.info.hvp_mode
        if isolation.lost:
            audit.forget()
            given = {id(x) for x in self._given}
            lost = self._problem.named(x for x in isolation.lost if id(x) not in given)
            names = some(lost) if lost else "the batch"
            self._caveats.append(
                f"the losses wrote into {names}, which they had not done in earlier steps, so its "
                "values could not be put back this once"
            )
        comparison = None
        if mode != "none":
            comparison = audit.comparison(mode)
        known = list(filter(None, dict.fromkeys(self._known_against(mode))))
        told, comparison = told_by_any(known, comparison)
        last = None
        if mode != "none" and not result.info.first_order:
            last = audit.residual(self._strategy, result.info.relative_residual)
        info = dataclasses.replace(
            result.info,
            caveat="; ".join(told),
            comparison=comparison,
            last_residual=last,
            matrix=self._strategy.curvature,
        )
        self._notify(info)
        return Hypergradient(result.grads, info, result.influence)

    def _known_against(self, mode: str) -> list[str]:
        """What is known against the result, in words."""
        findings = self._findings
        of_mode = findings.caveats.get(mode, "")
        return [*self._caveats, *findings.remarks, *self._hooked.faults, of_mode]

    def _inner(self, isolation: Isolation) -> InnerProblem:
        """The inner problem with its graph, which a first-order step does not make."""
        isolation.restore()
        tables = tables_of(self._parts, self._theta)
        with twice_differentiable():
            losses = self._problem.losses(self._batch)
            weights = self._problem.weights(losses)
        return self._systems(isolation).inner(self._batch, losses, weights, tables)

    def _compiled(self, batches: Iterable[Any] | None) -> CompiledStep | None:
        """The compiled form of this step, if it may have one."""
        problem, strategy = self._problem, self._strategy
        if not strategy.compile or problem.compilation is None:
            return None
        if only_eager(problem, self._theta, batches, self._hooks):
            return None
        given = self._batch, self._dev_batch
        return CompiledStep(problem, problem.compilation, strategy, self._theta, self._phi, given)

    def _stated(self) -> dict[str, object]:
        """What the processes have to state alike, by its name."""
        strategy = self._strategy
        return {
            "the names or the order of the inner parameters": list(self._theta),
            "the names or the order of the weighter's parameters": list(self._phi),
            "the weight decay of the optimizer": sorted(
                self._problem.weight_decay(self._theta).items()
            ),
            "reduction": self._problem.reduction,
            "hypergradient": (strategy.solver, strategy.damping, strategy.hvp, strategy.curvature),
        }

    def _fingerprint(self) -> object:
        """Equal for problems of which one comparison of second derivatives serves all."""
        return (tuple(map(id, self._theta.values())), *self._kind())

    def _fingerprint_in_words(self) -> str:
        """The same for another process, to which the names of parameters tell which they are."""
        # Sorted: the order of a set is another one in each process.
        told = [sorted(map(str, x)) if isinstance(x, frozenset) else x for x in self._kind()]
        return f"{digest(repr((list(self._theta), told)).encode()):.0f}"

    def _kind(self) -> tuple[object, ...]:
        """What kind of problem this is, whatever its parameters."""
        theta = self._theta.values()
        return (
            frozenset(x.dtype for x in (*theta, *self._given)),
            frozenset(p.device for p in theta),
            torch.get_default_dtype(),
            tuple(part.training for part in self._parts),
            self._strategy.hvp,
            self._strategy.curvature,
        )

    def _outer_gradients(self, loss: Tensor, graph: Graph, tables: Tree) -> tuple[Tree, Partial]:
        """``∂outer/∂θ``, sparse for tables of which it reads rows, and ``∂outer/∂φ``.

        Raises:
            ValueError: the outer loss depends on no inner parameter.
        """
        if self._in_shards is not None:
            return self._in_shards.gradients(loss, self._phi)
        if graph.is_reentrant and self._strategy.ways:
            return by_backward(loss, graph, self._theta, self._phi)
        graph.refuse_reentrant("outer_loss")
        read = looked_up(graph, tables)
        try:
            rhs, direct = outer_gradients(loss, self._theta, self._phi, read)
        except RuntimeError as error:
            raise RuntimeError(
                f"the outer loss can't be differentiated: {error}. If it uses a value that was "
                "computed in an earlier pass, such as a weight in a cache, compute it anew"
            ) from error
        if rhs is None:
            if shared() is None:
                self._refuse_outer()
            # It may depend on some through the samples of another process.
            self._has_outer = False
            inputs = GraphInputs(self._theta, read)
            rhs = inputs.gradient([None] * len(inputs.inputs))
        return rhs, direct

    def _refuse_outer(self) -> NoReturn:
        check_optimizers(self._problem.model, self._problem.optimizers, self._theta)
        raise ValueError(
            "the outer loss does not depend on any inner parameter: losses(model, batch) has "
            "no fixed part to take it from (pass outer_loss=), or it is computed under "
            "no_grad() or from a detached output, or inner_params leaves out what it uses"
        )

    def _systems(self, isolation: Isolation) -> Systems:
        return Systems(self._problem, self._strategy, self._parts, self._theta, isolation)

    def _look_at(self, inner: InnerProblem, leaves: dict[int, Any]) -> None:
        """Look for what makes the formula wrong: in the graph, and in what the pass changed."""
        self._caveats += caveats_of(
            self._problem, inner, self._phi, leaves, self._given, look=self._look
        )
        if self._look and inner.weights.numel():
            self._findings.remarks = remarks_on(inner)

    def _solved(
        self, systems: Systems, inner: InnerProblem, rhs: Tree, batches: Iterable[Any] | None
    ) -> Solved:
        strategy, audit, free = self._strategy, self._problem.audit, self._hooked.free
        system, fresh = systems.system(inner, free), None
        if batches is not None:
            fresh = FreshBatches(batches, systems.of_further(free), inner.isolation)
        failures = dict(self._findings.ruled_out)
        linearisations = audit.accepted(
            system.linearisations(strategy.modes, failures),
            failures,
            inner,
            auto=strategy.hvp == "auto",
        )
        measure, along = due_on_any(
            audit.is_residual_due(strategy, strategy.interval),
            audit.curvature(strategy, strategy.curvature_interval),
        )
        solved = solve(
            system,
            rhs,
            strategy.solver,
            linearisations,
            failures,
            self._pending,
            fresh,
            measure=measure,
            along=along,
        )
        if along is None:
            audit.note_curvature(strategy, solved.info)
        audit.note(failures)
        return solved

    def _notify(self, info: SolveInfo) -> None:
        """Warn once of what the user should know, and log the rest."""
        if logger.isEnabledFor(logging.DEBUG):  # the sentence takes time to build
            logger.debug(info.message)
        notices = self._problem.notices
        if info.hvp_mode == "finite_difference" and self._strategy.hvp == "auto":
            known = self._findings.ruled_out.items()
            reasons = "; ".join(f"{mode}: {error}" for mode, error in known)
            notices.warn(
                "finite_difference",
                "the Hessian is multiplied by finite differences of gradients, good to two to "
                f"five digits in float32, because no other mode works for this model ({reasons})",
            )
        if info.caveat:
            notices.warn("caveat", info.message)
        elif info.unexamined:
            notices.warn("comparison", info.message)
        if info.alarming:
            notices.warn(info.status.name, info.message)


def _influence(solved: Solved, weights: Tensor) -> Tensor:
    """``[B]``: the derivative of the outer loss by each weight."""
    influence = solved.indirect["weights"]
    if influence is None:
        if not len(weights):  # the samples are on other processes
            return torch.zeros_like(weights)
        raise ValueError(UNTOUCHED)
    return influence
