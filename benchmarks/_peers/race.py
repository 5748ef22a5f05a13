"""Equal numbers first, then what the contestants cost, on one problem in one setting."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks._measure import interleaved
from benchmarks._peers.agreement import apart, ready, reference
from benchmarks._peers.cells import CPU, Case
from benchmarks._peers.measure import counted
from benchmarks._peers.method import Gradient, Method, NotServed, Setting

UNIT = "forward + backward"
# Classifiers of more parameters are compared in float32 only: float64 would take as long as all
# the rest.
COMPARED = 2_000_000


@dataclass(frozen=True)
class Measured:
    """What one hypergradient cost.

    Attributes:
        cell: the problem.
        setting: the setting.
        method: the contestant.
        ms: processor time, the median.
        fb: the same in forward and backward passes of the inner loss without weights.
        mib: memory of its tensors at the peak; None where it is not known.
        unit_mib: that of a forward and backward pass.
        launches: operations without views; None where they can't be counted.
        waits: operations whose values Python waits for.
        apart: relative difference from the reference in float32.
        apart_float64: the same in float64, on 16 samples; None where it was not compared.
        agrees: whether its numbers are those of the reference.
        ours: whether it is a row of this library.
    """

    cell: str
    setting: str
    method: str
    ms: float
    fb: float
    mib: float | None
    unit_mib: float
    launches: int | None
    waits: int | None
    apart: float
    apart_float64: float | None
    agrees: bool
    ours: bool


class Disagreement(Exception):
    """A row of this library has other numbers than its reference."""


@dataclass(frozen=True)
class _Contestant:
    method: Method
    call: Gradient
    apart: float
    apart_float64: float | None
    agrees: bool


class Race:
    """One problem in one setting.

    Args:
        cell: the problem's name.
        case: the problem.
        setting: the setting.
        methods: the contestants. Those that do not serve it are passed over, and :attr:`skipped`
            says why.

    Raises:
        Disagreement: a row of this library has other numbers.
    """

    def __init__(self, cell: str, case: Case, setting: Setting, methods: Sequence[Method]) -> None:
        self._cell, self._case, self._setting = cell, case, setting
        classifier = case.outputs is not None
        few = sum(p.numel() for p in case.params) <= COMPARED
        self._small = case.small_in_float64() if classifier and few else None
        self._right: dict[tuple[object, torch.dtype], Sequence[Tensor]] = {}
        self._contestants: list[_Contestant] = []
        self.skipped: dict[str, str] = {}
        for method in methods:
            try:
                self._contestants.append(self._compared(method))
            except NotServed as reason:
                self.skipped[method.name] = str(reason)
            except Exception as error:
                # A peer may fail in any way. Ours refuses what it does not serve.
                if method.ours and not isinstance(error, (ValueError, NotImplementedError)):
                    raise
                self.skipped[method.name] = f"{type(error).__name__}: {error}"

    def _compared(self, method: Method) -> _Contestant:
        """Run the first call, which also warms up, and compare it with the reference."""
        setting, in_float64 = self._setting, None
        if self._small is not None:
            found = ready(method, self._small, setting)()
            in_float64 = apart(found, self._expected(method, self._small, torch.float64))
        call = ready(method, self._case, setting)
        difference = apart(call(), self._expected(method, self._case, torch.float32))
        agrees = difference <= method.tolerance(setting, torch.float32) and (
            in_float64 is None or in_float64 <= method.tolerance(setting, torch.float64)
        )
        if method.ours and not agrees:
            raise Disagreement(
                f"{self._cell}, {setting.name}: {method.name} is {difference:.1e} from its "
                f"reference in float32, {in_float64} in float64"
            )
        return _Contestant(method, call, difference, in_float64, agrees)

    def _expected(self, method: Method, case: Case, dtype: torch.dtype) -> Sequence[Tensor]:
        key = method.reference, dtype
        if key not in self._right:
            self._right[key] = reference(method, case, self._setting)()
        return self._right[key]

    def run(self, seconds: float, rounds: int) -> Iterator[Measured]:
        """Measure all that can run, in turns."""
        unit = self._case.forward_backward
        unit_mib = counted(unit).peak_mib
        counts = [counted(c.call) if c.method.eager else None for c in self._contestants]
        calls = {c.method.name: c.call for c in self._contestants}
        times = interleaved({UNIT: unit, **calls}, CPU, seconds, rounds, clock=time.process_time)
        base = statistics.median(times[UNIT])
        for contestant, count in zip(self._contestants, counts, strict=True):
            method = contestant.method
            spent = statistics.median(times[method.name])
            yield Measured(
                cell=self._cell,
                setting=self._setting.name,
                method=method.name,
                ms=1e3 * spent,
                fb=spent / base,
                mib=count.peak_mib if count else None,
                unit_mib=unit_mib,
                launches=count.launches if count else None,
                waits=count.waits if count else None,
                apart=contestant.apart,
                apart_float64=contestant.apart_float64,
                agrees=contestant.agrees,
                ours=method.ours,
            )
