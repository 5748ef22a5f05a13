"""Equal numbers first, then what the contestants cost, on one problem in one setting."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks._peers.agreement import apart, ready, reference
from benchmarks._peers.cells import Case
from benchmarks._peers.measure import counted, interleaved
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


class Race:
    """One problem in one setting.

    Args:
        cell: the problem's name.
        case: the problem.
        setting: the setting.
        methods: the contestants; those that are missing or not served are passed over, and
            :attr:`skipped` says why.
    """

    def __init__(self, cell: str, case: Case, setting: Setting, methods: Sequence[Method]) -> None:
        self._cell, self._case, self._setting = cell, case, setting
        classifier = case.outputs is not None
        few = sum(p.numel() for p in case.params) <= COMPARED
        self._small = case.small_in_float64() if classifier and few else None
        self._right: dict[tuple[object, torch.dtype], Sequence[Tensor]] = {}
        self.skipped: dict[str, str] = {}
        self._differences: dict[str, tuple[float, float | None]] = {}
        self._agrees: dict[str, bool] = {}
        self._methods: dict[str, Method] = {}
        self._calls: dict[str, Gradient] = {}
        for method in methods:
            if method.missing:
                self.skipped[method.name] = method.missing
                continue
            try:
                self._compare(method)
            except NotServed as reason:
                self.skipped[method.name] = str(reason)
            except Disagreement:
                raise
            except Exception as error:  # of another library, or a refusal of ours
                self.skipped[method.name] = f"{type(error).__name__}: {error}"

    def _compare(self, method: Method) -> None:
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
        self._differences[method.name] = difference, in_float64
        self._agrees[method.name] = agrees
        self._methods[method.name] = method
        self._calls[method.name] = call

    def _expected(self, method: Method, case: Case, dtype: torch.dtype) -> Sequence[Tensor]:
        key = method.reference, dtype
        if key not in self._right:
            self._right[key] = reference(method, case, self._setting)()
        return self._right[key]

    def run(self, seconds: float, rounds: int) -> Iterator[Measured]:
        """Measure all that can run, in turns."""
        unit = self._case.forward_backward
        unit_mib = counted(unit).peak_mib
        counts = {
            name: counted(self._calls[name]) if method.eager else None
            for name, method in self._methods.items()
        }
        times = interleaved({UNIT: unit, **self._calls}, seconds, rounds)
        base = statistics.median(times[UNIT])
        for name, method in self._methods.items():
            spent, count = statistics.median(times[name]), counts[name]
            difference, in_float64 = self._differences[name]
            yield Measured(
                cell=self._cell,
                setting=self._setting.name,
                method=name,
                ms=1e3 * spent,
                fb=spent / base,
                mib=count.peak_mib if count else None,
                unit_mib=unit_mib,
                launches=count.launches if count else None,
                waits=count.waits if count else None,
                apart=difference,
                apart_float64=in_float64,
                agrees=self._agrees[name],
                ours=method.ours,
            )
