"""What happens to an input: right, refused in words, not trusted with the cause named, or wrong."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import reweight
from _support.habits.reference import Truth, reference, seeded
from _support.habits.situation import Habit, Inner, Situation
from _support.habits.state import State
from reweight import ConjugateGradient, Hypergradient, ImplicitHypergradient, Reweighted

RIGHT, REFUSED, NOT_TRUSTED, WRONG = "right", "refused", "not trusted", "WRONG"
_PACKAGE = str(Path(reweight.__file__).parent)
# By the mode and the type. Exact products in float64: the error of the reference is near 1e-10,
# that of the solver 1e-10 times a condition number of about ten. Differences in float64 have a
# relative error near eps^(2/3) = 4e-11 of the largest gradient, and their residual is trusted up
# to 1e-3. In float32 products have six digits, and differences of gradients three to four, which
# the condition number lessens.
_TOLERANCE = {
    (True, torch.float64): 1e-6,
    (False, torch.float64): 1e-3,
    (True, torch.float32): 2e-3,
    (False, torch.float32): 3e-2,
}


@dataclass(frozen=True)
class Outcome:
    """What happened to one input.

    Attributes:
        kind: one of four words.
        text: the reason, the message or the distance from the reference.
    """

    kind: str
    text: str


class Stop(Exception):
    """Raised by a loss, to see what an exception leaves behind."""


def outcome(habit: Habit) -> Outcome:
    """Run the library on an input, and compare."""
    truth = reference(habit.build(True))
    situation = habit.build(False)
    situation.damping = truth.damping
    situation.install()
    with warnings.catch_warnings(record=True) as caught, situation.around():
        warnings.simplefilter("always")
        return _Run(habit, situation, truth, caught).outcome()


def outcome_after_exceptions(habit: Habit, evaluations: Sequence[int]) -> Outcome:
    """The same, after calls in which a loss raised an error at its n-th evaluation.

    Whether such an error leaves the library depends on where it is raised: what a comparison of
    second derivatives raises is a reason to do without the comparison. In each case all state is as
    it was, and the next call gives what it gave without the error.
    """
    situation = habit.build(False)
    situation.install()
    alarm = _Alarm()
    situation.losses = alarm.in_front_of(situation.losses)
    situation.outer_loss = alarm.in_front_of(situation.outer_loss)
    with warnings.catch_warnings(record=True) as caught, situation.around():
        warnings.simplefilter("always")
        try:
            rw = wrapped(situation)
            if situation.later is not None:
                rw.hypergradient(*(situation.early or (situation.train, situation.dev)))
                situation.later()
            seeded()
            state = State(roots(situation) if situation.pure else {})
            first = rw.hypergradient(situation.train, situation.dev)
        except Exception as error:  # there is nothing to interrupt
            return _Run(habit, situation, None, caught).refusal(error)
        for n in evaluations:
            for ask in (
                lambda: rw.hypergradient(situation.train, situation.dev),
                lambda: rw.weights(situation.train),
            ):
                alarm.count, alarm.at = 0, n
                try:
                    ask()
                except Stop:
                    pass
                except Exception as error:
                    if not _caused_by_stop(error):
                        return Outcome(WRONG, f"after Stop at {n}: {error!r}")
                if changed := state.differences():
                    return Outcome(WRONG, f"an error at evaluation {n} changed {changed[:3]}")
        alarm.at = 0
        again = rw.hypergradient(situation.train, situation.dev)
    if not torch.equal(first.influence, again.influence):
        return Outcome(WRONG, f"after an error, off by {_apart(again.influence, first.influence)}")
    return Outcome(RIGHT, f"{len(evaluations)} errors")


class _Alarm:
    """Counts the evaluations of losses, and raises an error at one of them."""

    unwatched = True  # a State does not look into it

    def __init__(self) -> None:
        self.count, self.at = 0, 0

    def in_front_of(self, loss: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        def evaluate(model: Any, batch: Any) -> Any:
            self.count += 1
            value = loss(model, batch)
            if self.count == self.at:
                raise Stop(f"at evaluation {self.at}")
            return value

        return evaluate


def _caused_by_stop(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, Stop) or "Stop" in str(error) or "at evaluation" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def wrapped(situation: Situation) -> Reweighted:
    """``wrap`` of a situation, with a solver that is exact on it."""
    return reweight.wrap(
        situation.model,
        situation.weighter,
        situation.losses,
        situation.outer_loss,
        situation.optimizer,
        ImplicitHypergradient(
            ConjugateGradient(200, 1e-10),
            damping=8.0 if situation.damping is None else situation.damping,
            hvp=situation.hvp,
        ),
        situation.inner_params,
        situation.reduction,
    )


def roots(situation: Situation) -> dict[str, Any]:
    """Where the state begins that must not change."""
    return {
        "model": situation.model,
        "weighter": situation.weighter,
        "losses": situation.losses,
        "outer_loss": situation.outer_loss,
        "optimizer": situation.optimizer,
        "train": situation.train,
        "dev": situation.dev,
        "inner": list(situation.inner),
        "watched": situation.watched,
    }


class _Run:
    """One run of the library on an input."""

    def __init__(
        self, habit: Habit, situation: Situation, truth: Truth | None, caught: list[Any]
    ) -> None:
        self.habit, self.situation, self.truth = habit, situation, truth
        self._caught = caught
        self._state: State | None = None

    def outcome(self) -> Outcome:
        situation, truth = self.situation, self.truth
        assert truth is not None
        try:
            rw = wrapped(situation)
            if situation.later is not None:
                seeded()
                early = situation.early or (situation.train, situation.dev)
                rw.hypergradient(*early)
                situation.later()
            seeded()
            if situation.pure:
                self._state = State(roots(situation))
            weights = rw.weights(situation.train)
            if changed := self._changes():
                return Outcome(WRONG, f"rw.weights() changed {changed}")
            found = rw.hypergradient(situation.train, situation.dev)
            if changed := self._changes():
                return Outcome(WRONG, f"rw.hypergradient() changed {changed}")
            again = rw.hypergradient(situation.train, situation.dev)
            if changed := self._changes():
                return Outcome(WRONG, f"rw.hypergradient() changed {changed} the second time")
            seeded()
            loss = float(rw.loss(situation.train).detach())
        except Exception as error:
            return self.refusal(error)
        tolerance = self._tolerance(found)
        said = self._said(found)
        if self.habit.named and not _has(self.habit.named, said):
            return Outcome(WRONG, f"none of {self.habit.named} in {said!r}")
        if (apart := _apart(again.influence, found.influence)) > 0.0:
            return Outcome(WRONG, f"the second call is off by {apart:.2g}")
        # Weights and losses take no products: they have the digits of their type.
        digits = 1e-9 if self._dtype(weights) == torch.float64 else 1e-4
        if (apart := _apart(weights, truth.weights)) > digits:
            return Outcome(WRONG, f"rw.weights() is off by {apart:.2g}")
        if abs(loss - truth.loss) > digits * max(abs(truth.loss), 1.0):
            return Outcome(WRONG, f"rw.loss() is {loss}, right is {truth.loss}")
        apart = _apart(found.influence, truth.influence)
        apart = max(apart, _apart(_flat(found.grads), _flat(truth.grads)))
        trusted = "trusted" if found.info.trustworthy else "not trusted"
        how = f"{apart:.1e} in mode {found.info.hvp_mode}, {trusted}"
        if apart <= tolerance:
            return Outcome(RIGHT, how)
        if found.info.trustworthy:
            return Outcome(WRONG, f"trusted, and off by {how}")
        if not _has(self.habit.causes, said):
            return Outcome(WRONG, f"off by {how}, none of {self.habit.causes} in {said!r}")
        return Outcome(NOT_TRUSTED, f"{how}: {said}")

    def _changes(self) -> str:
        changed = [] if self._state is None else self._state.differences()
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        return ", ".join(changed[:3]) + more

    def refusal(self, error: Exception) -> Outcome:
        text = f"{type(error).__name__}: {error}"
        frames = traceback.extract_tb(error.__traceback__)
        own = bool(frames) and frames[-1].filename.startswith(_PACKAGE)
        # An operation of torch has no frame of its own: the line must be one that raises.
        if not own or not (frames[-1].line or "").startswith("raise"):
            return Outcome(WRONG, f"an error from elsewhere, {text}")
        if not isinstance(error, (ValueError, TypeError, RuntimeError)):
            return Outcome(WRONG, f"an error of another kind, {text}")
        if not _has(self.habit.refused, str(error)):
            return Outcome(WRONG, f"refused without any of {self.habit.refused}, {text}")
        if changed := self._changes():
            return Outcome(WRONG, f"refused, but changed {changed}")
        return Outcome(REFUSED, text)

    def _tolerance(self, found: Hypergradient) -> float:
        exact = found.info.hvp_mode != "finite_difference"
        usual = _TOLERANCE[exact, self._dtype(found.influence)]
        return usual if self.habit.tolerance is None else max(usual, self.habit.tolerance)

    def _dtype(self, found: Tensor) -> torch.dtype:
        """The type whose rounding counts: that of the parameters, where it is the narrower one."""
        tensors = [v.tensor if isinstance(v, Inner) else v for v in self.situation.inner]
        narrow = any(t.dtype == torch.float32 for t in (found, *tensors))
        return torch.float32 if narrow else torch.float64

    def _said(self, found: Hypergradient) -> str:
        return " | ".join([found.info.message, *(str(w.message) for w in self._caught)])


def _has(words: tuple[str, ...], text: str) -> bool:
    return any(word.lower() in text.lower() for word in words)


def _flat(grads: dict[str, Tensor]) -> Tensor:
    return torch.cat([grads[name].reshape(-1) for name in sorted(grads)])


def _apart(found: Tensor, right: Tensor) -> float:
    """The distance, relative to the right value."""
    if found.shape != right.shape:
        return float("inf")
    found, right = found.detach().double(), right.detach().double()
    size = float(right.norm())
    return float((found - right).norm()) / (size if size > 0.0 else 1.0)
