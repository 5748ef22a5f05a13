"""Whether the second derivatives that a mode gives are those of the inner loss."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from reweight._curvature import Linearisation, Mode
from reweight._problem.double import InnerInDouble
from reweight._problem.in_place import InnerInPlace
from reweight._problem.inner import InnerProblem
from reweight._problem.outputs import GaussNewtonAt
from reweight._problem.processes import learn_of_others, rejected_by_any
from reweight._problem.second_derivatives import Disagreement, disagreement
from reweight._tensors import sharing
from reweight.verdict import TRUSTED_RESIDUAL, WAYS, Comparison, LastResidual, SolveInfo, Way

logger = logging.getLogger("reweight")

# What was found is looked at again after this many outer steps, then after twice as many, and so
# on: a part that was wrong from the start is found at once, a part that went wrong later, some day.
_AGAIN_AFTER = 100
# Comparisons because of the number of operations alone, per doubling of the number of steps.
_LOOKS = 4
# So many kinds of problems are remembered, the oldest ones being forgotten.
_KINDS = 32


@dataclass
class Findings:
    """What comparisons have shown of problems that are alike: same θ, module modes and types.

    Attributes:
        ruled_out: the modes that do not work or are wrong, with the reason.
        no_way: the same for the ways of first-order steps.
        caveats: what is wrong with modes that are used although they are wrong.
        compared: the outer step in which each mode was last compared.
        not_compared: why a mode could not be compared.
        kinds: the kinds of operations that were in the graphs looked at.
        leaves: the names of the inner parameters that were reached in them.
        sizes: the numbers of operations that they had.
        step_share: the step of differences of losses, as a share of the one that is estimated;
            0 until they are first used.
        precision: by how much these differed from those with another step.
        hidden: whether a part of them showed nothing, because its gradient was zero.
        looks: how often was looked.
        looked: the outer step of the last look.
        remarks: what else is wrong with the problem, in words.
        loaded: whether this is of a saved state, and nothing was looked at since.
    """

    ruled_out: dict[Mode, BaseException] = field(default_factory=dict)
    no_way: dict[Way, str] = field(default_factory=dict)
    caveats: dict[str, str] = field(default_factory=dict)
    compared: dict[str, int] = field(default_factory=dict)
    not_compared: dict[str, str] = field(default_factory=dict)
    step_share: float = 0.0
    precision: float = 0.0
    kinds: frozenset[type] = frozenset()
    leaves: frozenset[str] = frozenset()
    sizes: frozenset[int] = frozenset()
    hidden: bool = False
    looks: int = 0
    looked: int = 0
    remarks: list[str] = field(default_factory=list)
    loaded: bool = False


class Audit:
    """Compares the second derivatives of each mode with differences of gradients.

    They are compared when a mode is first used, when the inner problem is no longer of the same
    kind (see :meth:`begin`), and now and then.

    Attributes:
        findings: what is known of the problem of this step.
    """

    def __init__(self) -> None:
        self._findings: dict[object, Findings] = {}
        self._names: dict[object, str] = {}
        self._loaded: dict[str, Findings] = {}
        self.findings = Findings()
        self._step = 0
        self._residual: tuple[int, object, float] | None = None
        self._curvature: tuple[int, object, float] | None = None

    def begin(self, fingerprint: object, name: str) -> bool:
        """Begin an outer step.

        Args:
            fingerprint: equal for problems of which one comparison serves all.
            name: the same in words, which another process understands.

        Returns:
            Whether this is a problem to look at: a new one, or one last looked at long ago.
        """
        self._step += 1
        known = self._findings.get(fingerprint)
        if known is None:
            known = self._findings[fingerprint] = self._loaded.pop(name, Findings())
            self._names[fingerprint] = name
            if len(self._findings) > _KINDS:
                oldest = next(iter(self._findings))
                del self._findings[oldest], self._names[oldest]
        age = self._step - known.looked
        # Where something was hidden, soon again: in steps 2, 4, 8 and so on.
        due = known.looked if known.hidden else max(_AGAIN_AFTER, self._step // 2)
        if known.looks == 0 or age >= due:
            looks = known.looks + 1
            known = self._findings[fingerprint] = Findings(looked=self._step, looks=looks)
        learn_of_others(known.ruled_out, known.no_way)
        self.findings, look = known, known.loaded or known.looked == self._step
        known.loaded = False
        return look

    def meet(self, kinds: frozenset[type], leaves: Iterable[str]) -> None:
        """Note what is in a graph; what was compared before something joined is compared again."""
        now, leaves = self.findings, frozenset(leaves)
        if not (now.kinds >= kinds and now.leaves >= leaves):
            now.compared.clear()
            now.not_compared.clear()
            now.kinds, now.leaves = now.kinds | kinds, now.leaves | leaves

    def is_residual_due(self, strategy: object, interval: int) -> bool:
        """Whether this step is to measure the residual, which is done every ``interval`` steps.

        It is also due where the problem or the strategy is new.
        """
        return self._recent(self._residual, strategy, interval) is None

    def curvature(self, strategy: object, interval: int) -> float | None:
        """The smallest curvature that was last measured along a small residual.

        ``None`` if this step is to measure it, which is done every ``interval`` steps.
        """
        return self._recent(self._curvature, strategy, interval)

    def note_curvature(self, strategy: object, info: SolveInfo) -> None:
        """Note the smallest curvature of a verdict that measured along a small residual."""
        residual, smallest = info.relative_residual, info.smallest_curvature
        if residual is not None and residual <= TRUSTED_RESIDUAL and smallest is not None:
            self._curvature = self._step, strategy, smallest

    def _recent(
        self, noted: tuple[int, object, float] | None, strategy: object, interval: int
    ) -> float | None:
        """A number that is not older than ``interval`` steps, of this problem and strategy."""
        if noted is None or self.findings.looked == self._step:
            return None
        step, of, value = noted
        return value if of is strategy and self._step - step < interval else None

    def residual(self, strategy: object, measured: float | None) -> LastResidual | None:
        """Note the residual of this step; without one, return the last one before."""
        if measured is not None:
            self._residual = self._step, strategy, measured
        if measured is not None or self._residual is None:
            return None
        step, of, value = self._residual
        return LastResidual(value, self._step - step) if of is strategy else None

    def forget(self) -> None:
        """Look at everything again in the next step."""
        self._findings.clear()
        self._names.clear()

    def state_dict(self) -> dict[str, Any]:
        """What later steps take from earlier ones and their numbers depend on, in plain values."""
        findings = {
            self._names[fingerprint]: {
                "step_share": each.step_share,
                "precision": each.precision,
                "ruled_out": {mode: str(error) for mode, error in each.ruled_out.items()},
                "no_way": dict(each.no_way),
                "caveats": dict(each.caveats),
                "hidden": each.hidden,
                "looks": each.looks,
                "looked": each.looked,
            }
            for fingerprint, each in self._findings.items()
        }
        return {"step": self._step, "findings": findings}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state: the problem is looked at again, and numbers are as they were."""
        self.forget()
        self._step = state["step"]
        self._residual = self._curvature = None
        self._loaded = {}
        for name, each in state["findings"].items():
            ruled_out = {mode: RuntimeError(why) for mode, why in each["ruled_out"].items()}
            self._loaded[name] = Findings(**{**each, "ruled_out": ruled_out}, loaded=True)

    @property
    def step(self) -> int:
        """The number of this outer step."""
        return self._step

    def comparison(self, mode: str) -> Comparison | None:
        """The last comparison of a mode; ``None`` where nothing had to be compared."""
        first_order = mode in WAYS
        if reason := self.findings.not_compared.get(mode):
            return Comparison(None, reason, first_order)
        step = self.findings.compared.get(mode)
        return None if step is None else Comparison(self._step - step, first_order=first_order)

    def accepted(
        self,
        linearisations: Iterable[tuple[Mode, Linearisation]],
        failures: dict[Mode, BaseException],
        inner: InnerProblem,
        *,
        auto: bool,
    ) -> Iterator[tuple[Mode, Linearisation]]:
        """Those linearisations whose products may be used, each compared when it is asked for.

        Args:
            linearisations: of the inner problem, with their modes.
            failures: the modes that are rejected are added, with the reason.
            inner: the inner problem.
            auto: whether another mode may be used instead of a wrong one.
        """
        now, graph = self.findings, inner.graph
        reached = graph.reached(inner.theta)
        size = len(graph.nodes)
        joined = not (now.kinds >= graph.kinds and now.leaves.issuperset(reached))
        # Graphs of ragged batches have many sizes, so these are compared less and less often.
        if joined or (size not in now.sizes and now.looks <= _LOOKS * math.log2(self._step + 1)):
            # Something is in the loss that no comparison has seen.
            now.compared.clear()
            now.not_compared.clear()
            now.kinds, now.leaves = now.kinds | graph.kinds, now.leaves.union(reached)
            now.sizes |= {size}
            now.looks, now.looked = now.looks + 1, self._step
        for mode, linearisation in linearisations:
            # Each process compares what it has; a mode that one of them rejects is used by none.
            with sharing(None):
                reason = self._rejection(mode, inner, linearisation.params, auto)
            reason = rejected_by_any(reason)
            if reason is None:
                yield mode, linearisation
            else:
                failures[mode] = RuntimeError(reason)

    def note(self, failures: Mapping[Mode, BaseException]) -> None:
        """Remember modes that do not work, for later steps."""
        # Only the message: an exception holds its traceback, and so the batch, in memory.
        self.findings.ruled_out.update(
            {m: RuntimeError(str(error)) for m, error in failures.items()}
        )

    def _rejection(
        self, mode: Mode, inner: InnerProblem, names: Iterable[str], auto: bool
    ) -> str | None:
        now, names = self.findings, list(names)
        if mode in now.compared or mode in now.not_compared:
            return None
        if not names:  # the samples are on other processes, and so are the derivatives
            now.compared[mode] = self._step
            return None
        try:
            found = _disagreement(mode, inner, names)
        except _NotComparedError as error:
            now.not_compared[mode] = str(error)
            return None
        now.compared[mode] = self._step
        now.hidden = not inner.is_all_alive()
        if found is None:
            return None
        by = f"by {found.share:.2g} of its size for {found.name}"
        if not found.of_the_loss:
            also = f" (nor are the products with its Hessian, {by})" if found.name else ""
            now.caveats[mode] = (
                f"the gradients of the inner loss are not its derivatives{also}: is there a "
                "detach() inside the losses, a straight-through or a reversed gradient? The "
                "formula then holds for another problem than the one that is trained"
            )
            return None
        if auto:
            # Remembered now: whatever happens later in this step, the mode is not tried again.
            reason = f"its second derivatives are wrong {by}, as differences of gradients show"
            now.ruled_out[mode] = RuntimeError(reason)
            return reason
        now.caveats[mode] = (
            f"second derivatives in hvp mode {mode!r} are wrong {by}, as differences of "
            'gradients show; use hvp="auto", which goes on to another mode'
        )
        return None


class _NotComparedError(Exception):
    """No comparison could be made."""


def _disagreement(mode: Mode, inner: InnerProblem, names: list[str]) -> Disagreement | None:
    """Compare in float64, or else in the precision that the problem has."""
    reasons: dict[str, None] = {}
    for precision, make in (("float64", in_double), ("its own precision", InnerInPlace)):
        try:
            made: InnerInDouble | InnerInPlace = make(inner, names)
            problem = made if inner.outputs is None else GaussNewtonAt(made)
            # Differences of gradients are compared with nothing, but have to be derivatives.
            product = None
            if mode != "finite_difference":
                product = functools.partial(problem.product, mode)
            constant = inner.padding(made.rows)
            return disagreement(product, problem.evaluate, made.params(), constant)
        except Exception as error:  # whatever an operation raises in a type it was not made for
            logger.info("hvp mode %r is not compared in %s: %s", mode, precision, str(error))
            said = (str(error).strip() or repr(error)).splitlines()[0]
            reasons[f"in {precision}, {said}"] = None
    raise _NotComparedError("; ".join(reasons))


def in_double(inner: InnerProblem, names: list[str]) -> InnerInDouble:
    """The inner problem in float64.

    Raises:
        RuntimeError: that would cost too much.
    """
    problem = InnerInDouble(inner, names)
    if reason := problem.too_costly():
        raise RuntimeError(reason)
    return problem
