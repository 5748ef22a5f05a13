"""The compiled form of an outer step: when it is used, and when it is not."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from reweight._problem.bilevel import BilevelProblem
from reweight._problem.compilation import MOST_PROGRAMS, Compilation
from reweight._problem.inner import InnerProblem
from reweight._problem.isolation import is_compiled, twice_differentiable
from reweight._problem.pure_step import PureStep
from reweight._problem.weights import SATURATED
from reweight._tensors import Tree, alone, can_read, no_compiling, read, some
from reweight.hypergradient import Hypergradient, ImplicitHypergradient
from reweight.solvers import PLAIN, Identity, Neumann, TracedSolver, UntraceableError, traced
from reweight.verdict import WAYS, SolveInfo
from reweight.weighters import stated_bounds

logger = logging.getLogger("reweight")

# A compiled table is a dense vector, whatever rows are read, and so costs time in its size.
_LARGEST_TABLE = 100_000


class _RefusedError(Exception):
    """A step that can't be compiled; the message says why."""


class CompiledStep:
    """The compiled form of one outer step.

    Args:
        problem: the problem.
        compilation: what was compiled in earlier steps.
        strategy: how to solve.
        theta: the inner parameters.
        phi: the parameters of the weighter.
        batches: the train batch and the dev batch.
    """

    def __init__(
        self,
        problem: BilevelProblem,
        compilation: Compilation,
        strategy: ImplicitHypergradient,
        theta: Tree,
        phi: Tree,
        batches: tuple[Any, Any],
    ) -> None:
        self._problem, self._compilation, self._strategy = problem, compilation, strategy
        self._theta, self._phi, self._batches = theta, phi, batches
        self._owners = (strategy, *problem.roots(), *theta.values(), *phi.values())
        self._found: Any = None
        self._is_run = False

    @property
    def mode(self) -> str:
        """The mode of the eager step that the result is known to agree with."""
        return self._compilation.mode

    def is_due(self) -> bool:
        """Whether this step is to be eager, because of what only such a step measures."""
        audit, strategy = self._problem.audit, self._strategy
        if not strategy.ways:
            return audit.is_residual_due(strategy, strategy.interval)
        # First-order steps measure no residual; the same interval is that of comparisons.
        looks = audit.findings.looked == audit.step
        return looks or self._compilation.age >= strategy.interval - 1

    def run(self) -> Hypergradient | None:
        """The result of a compiled program, if there is one for this step."""
        self._is_run, self._found = True, self._outputs(compiling=False)
        if self._found is None:
            return None
        self._compilation.age += 1
        return self._result(*self._found)

    def learn(
        self,
        eager: Hypergradient,
        graph: Callable[[], InnerProblem],
        caveats: Iterable[str],
        *,
        random: bool,
    ) -> None:
        """Compare a program with what the eager step gave, and compile one if there is none.

        Args:
            eager: the result of the same step.
            graph: evaluates its inner problem.
            caveats: what is known against the result.
            random: whether a pass drew random numbers.
        """
        compilation = self._compilation
        known = compilation.is_of(self._owners)
        if (known and compilation.refusal) or eager.info.hvp_mode == "none":
            return
        try:
            self._check(eager, caveats, random)
            outputs = self._found if self._is_run else self._outputs(compiling=False)
            if outputs is not None:
                self._compare(eager, outputs, new=False)
            elif compilation.is_full:
                self._say_full()
            else:
                self._compare(eager, self._compiled_for(graph(), known), new=True)
        except _RefusedError as refused:
            self._refuse(str(refused))

    def _compiled_for(self, inner: InnerProblem, known: bool) -> Any:
        """What a new program gives."""
        if not known:
            self._compilation.take(self._owners, self._pure(inner))
        self._check_tables(inner)
        return self._outputs(compiling=True)

    def _refuse(self, reason: str) -> None:
        self._compilation.refuse(self._owners, reason)
        say_not_compiled(self._problem, reason)

    def _outputs(self, *, compiling: bool) -> Any:
        """What a program returns; without ``compiling``, ``None`` if there is none that fits."""
        compilation, pure = self._compilation, self._compilation.pure
        if pure is None or not compilation.is_of(self._owners):
            return None
        decay, damping = self._problem.weight_decay(self._theta), self._strategy.damping
        shift = {name: decay[name] + damping for name in self._theta}
        preconditioner = self._strategy.preconditioner
        args = pure.arguments(self._theta, self._phi, shift, preconditioner, *self._batches)
        with torch.no_grad(), twice_differentiable():
            if not compiling:
                return compilation.run(*args)
            try:
                return compilation.compiled(*args)
            except Exception as error:  # whatever a compiler or the user's code raises in it
                logger.info("the outer step can't be compiled: %s", str(error))
                first, *rest = (str(error).strip() or repr(error)).splitlines()
                said = f"{first} {rest[0]}" if first.endswith(":") and rest else first
                raise _RefusedError(
                    f"it can't be compiled ({type(error).__name__}: {said.rstrip('.')}); the log "
                    "of reweight at level INFO has all that the compiler said"
                ) from error

    def _pure(self, inner: InnerProblem) -> PureStep:
        """The step as a function.

        Raises:
            _RefusedError: it is none that can be compiled.
        """
        kinds = {(p.dtype, p.device) for p in self._theta.values()}
        if len(kinds) > 1 or next(iter(kinds))[0] not in (torch.float32, torch.float64):
            raise _RefusedError(
                "the inner parameters have several types or devices, or another type than float32 "
                "and float64"
            )
        if is_compiled(inner.parts):
            raise _RefusedError(
                "a part of the model is compiled already, and a program inside another one gets no "
                "other parameters: wrap the model as it was before torch.compile"
            )
        if self._strategy.curvature != "hessian":
            raise _RefusedError(f"curvature={self._strategy.curvature!r} is not compiled")
        names, solver = [*inner.reached()], self._solver()
        stated = self._strategy.solver
        first_order = None
        if self._strategy.ways and isinstance(stated, Identity):
            first_order = stated.step_size
        pure = PureStep(
            self._problem, solver, self._theta, self._phi, names, first_order=first_order
        )
        if pure.missing:
            raise _RefusedError(
                f"the inner parameters {some(dict.fromkeys(pure.missing))} are in no module that "
                "the losses refer to, so a function can't replace them"
            )
        try:
            inner.functional_model()
        except RuntimeError as error:
            raise _RefusedError(str(error)) from error
        return pure

    def _solver(self) -> TracedSolver:
        dtype = next(iter(self._theta.values())).dtype
        try:
            return traced(self._strategy.solver, dtype)
        except UntraceableError as error:
            raise _RefusedError(str(error)) from error

    def _check(self, eager: Hypergradient, caveats: Iterable[str], random: bool) -> None:
        """Look at what only an eager step shows.

        Raises:
            _RefusedError: a compiled step would give something else.
        """
        if eager.info.hvp_mode in ("finite_difference", "differences"):
            raise _RefusedError("the eager step has no exact derivatives for this model")
        if found := "; ".join(filter(None, caveats)):
            raise _RefusedError(f"only an eager step shows that {found}")
        if random:
            raise _RefusedError(
                "the losses draw random numbers (dropout), and a compiled step draws others, so "
                "its result can't be compared"
            )

    def _check_tables(self, inner: InnerProblem) -> None:
        """Look at the tables that an eager step reads by rows.

        Raises:
            _RefusedError: a compiled step takes longer, or gives something else.
        """
        size = sum(inner.theta[name].numel() for name in inner.tables)
        if size > _LARGEST_TABLE:
            raise _RefusedError(
                f"the embedding tables {some(inner.tables)} have {size} entries, and a compiled "
                f"step works on all rows, not on those that are read (limit {_LARGEST_TABLE})"
            )
        solver = self._strategy.solver
        if inner.tables and isinstance(solver, Neumann) and solver.step_size == "auto":
            raise _RefusedError(
                f"the embedding tables {some(inner.tables)} are used by all their rows in a "
                'compiled step, which changes step_size="auto": give a number'
            )

    def _compare(self, eager: Hypergradient, outputs: Any, *, new: bool) -> None:
        """Compare with the eager step.

        Raises:
            _RefusedError: the results differ, or there is none to compare.
        """
        compilation = self._compilation
        result = self._result(*outputs)
        if result is None:
            if new:
                raise _RefusedError(
                    "the solver goes another way than its compiled form (a Krylov space that ends, "
                    "a gradient of the outer loss outside of 1e-6 to 1e6, saturated weights)"
                )
            return
        pairs = [(result.influence, eager.influence)]
        pairs += [(result.grads[name], grad) for name, grad in eager.grads.items()]
        share = _difference(pairs[:1]), _difference(pairs[1:])
        # Operations in another order give other rounding errors. Sums over parameters and samples
        # in which terms cancel enlarge them; a formula that is wrong differs by more than this.
        if not max(share) <= math.sqrt(torch.finfo(eager.influence.dtype).eps):
            raise _RefusedError(
                f"its result differs from the eager step by {max(share):.2g} of its size: does the "
                "step draw random numbers, or depend on what a compiler does not follow?"
            )
        compilation.age = 0
        compilation.mode = eager.info.hvp_mode
        if new:
            self._problem.notices.warn(
                "compiled",
                f"the outer step was compiled in {compilation.seconds:.1f} s for batches of these "
                f"shapes; other shapes take as long again, up to {MOST_PROGRAMS} in all. Steps "
                "that measure the residual stay eager, and compiled ones are compared with them.",
            )

    def _say_full(self) -> None:
        self._problem.notices.warn(
            "compile limit",
            f"outer steps were compiled {MOST_PROGRAMS} times, and what fits none of these "
            "programs runs eagerly: batches of other shapes, modules whose Python attributes "
            "changed. Keep the batch size (drop_last=True in the loader), and let what changes "
            "from step to step be a tensor.",
        )

    def _result(self, grads: Tree, influence: Tensor, numbers: Tensor) -> Hypergradient | None:
        """The result, unless numbers show something that the eager step treats in another way."""
        problem = self._problem
        (found,) = read(numbers)
        if not all(map(math.isfinite, found)):
            return None
        numbers_left = iter(found)
        *_, of_b, size = head = [*itertools.islice(numbers_left, 10)]
        responses = [*itertools.islice(numbers_left, len(self._phi))]
        solver = self._solver()
        met = None
        if self._strategy.preconditioner is not None:
            products = [*itertools.islice(numbers_left, 2 * solver.num_products)]
            met = [y / x for x, y in zip(products[::2], products[1::2], strict=True) if x > 0.0]
        solution = solver.solution([*numbers_left])
        if solution is None or solution.status.final or size == 0.0:
            return None
        if solver.num_products and not PLAIN[0] <= of_b <= PLAIN[1]:
            return None
        level = head[3:8] if problem.progress.is_reading else ()
        weighter = problem.weighter
        at_bound = problem.progress.meet(type(weighter).__name__, level, stated_bounds(weighter))
        if not at_bound and math.hypot(*responses) < SATURATED * size:
            return None
        info = SolveInfo(
            relative_residual=None,
            num_hvps=solver.num_products,
            status=solution.status,
            # With a preconditioner, the solver's estimates are of another matrix.
            curvature=solution.curvature if met is None else max(met, default=None),
            hvp_mode=self.mode if self.mode in WAYS else "func",
            smallest_curvature=(
                solution.smallest_curvature if met is None else min(met, default=None)
            ),
            detail=f"{solution.detail}, {self._said()}".removeprefix(", "),
        )
        return Hypergradient(grads, info, influence)

    def _said(self) -> str:
        age = self._compilation.age
        when = "one step" if age == 1 else f"{age} steps"
        return f"compiled, last compared with an eager step {when} ago"


def only_eager(problem: BilevelProblem, theta: Tree, batches: object, hooks: object) -> bool:
    """Whether this step can't be compiled whatever the problem is; says why.

    Args:
        problem: the problem.
        theta: the inner parameters.
        batches: further train batches, or ``None``.
        hooks: gradient hooks on inner parameters.
    """
    if batches is not None:
        reason = "batches= gives every product another batch"
    elif hooks:
        reason = "gradient hooks on inner parameters are tried in every step"
    elif not alone():
        reason = "several processes share the samples"
    elif not all(map(can_read, theta.values())):
        reason = "a CUDA graph is captured, in which no number of a compiled step can be looked at"
    else:
        reason = no_compiling()
    if reason:
        say_not_compiled(problem, reason)
    return bool(reason)


def say_not_compiled(problem: BilevelProblem, reason: str) -> None:
    """Warn once for this reason."""
    problem.notices.warn(
        f"compile: {reason}", f"outer steps run eagerly, although compile=True: {reason}."
    )


def _difference(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    """How far the first of each pair is from the second, as a share of the norm of all seconds."""
    apart, size = (
        math.hypot(*(float(torch.linalg.vector_norm(x.double())) for x in tensors))
        for tensors in ([one - other for one, other in pairs], [other for _, other in pairs])
    )
    return apart / size if size else apart
