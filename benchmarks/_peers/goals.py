"""The project's own targets, as far as benchmarks/peers.py measures them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks._peers.cells import CLASSIFIERS, ONE_OUTPUT, TABLES
from benchmarks._peers.method import CG, IDENTITY, NEUMANN
from benchmarks._peers.ours import FIRST_ORDER, GAUSS_NEWTON, GENERAL, SAMPLE_SPACE, SAMPLED
from benchmarks._peers.plain import PLAIN
from benchmarks._peers.race import Measured
from benchmarks._peers.report import markdown
from benchmarks._peers.trainings import ALL, BASE, LORA
from benchmarks._peers.trainings import IDENTITY as WITH_IDENTITY

LARGER = ("MLP 1 M", "CNN", "transformer")
# Those that the targets compare with. JAX, which is compiled as a whole, is shown and not a target.
LIBRARIES = ("TorchOpt", "Betty", "Betty, differences", "BOAT")

Trainings = dict[str, dict[str, float]]
Value = Callable[["Results"], float | None]


class Results:
    """The measurements, by problem, setting and contestant."""

    def __init__(self, rows: Sequence[Measured], trainings: Trainings) -> None:
        self._place = {(row.cell, row.setting, row.method): row for row in rows}
        self.cells = [cell for cell in CLASSIFIERS if any(row.cell == cell for row in rows)]
        self.trainings = trainings

    def get(self, cell: str, setting: str, *methods: str) -> Measured | None:
        """The row of the first of the methods that was measured."""
        found = (self._place.get((cell, setting, method)) for method in methods)
        return next((row for row in found if row is not None), None)

    def fastest(self, cell: str, setting: str, methods: Sequence[str]) -> float | None:
        """The milliseconds of the fastest of the methods whose numbers are right."""
        rows = [self._place.get((cell, setting, method)) for method in methods]
        return min((row.ms for row in rows if row is not None and row.agrees), default=None)

    def over_fastest(
        self, setting: str, ours: Sequence[str], others: Sequence[str], cells: Sequence[str]
    ) -> list[float]:
        """Our time over that of the fastest other, on each problem where both are known."""
        ratios = []
        for cell in cells:
            row, least = self.get(cell, setting, *ours), self.fastest(cell, setting, others)
            if row is not None and least is not None:
                ratios.append(row.ms / least)
        return ratios

    def rows(self, setting: str, ours: Sequence[str], cells: Sequence[str]) -> list[Measured]:
        found = (self.get(cell, setting, *ours) for cell in cells)
        return [row for row in found if row is not None]


@dataclass(frozen=True)
class Goal:
    """A target.

    Attributes:
        text: what is compared.
        most: the largest value that reaches it.
        value: what was measured, None where the run had no such row.
    """

    text: str
    most: float
    value: Value


def _most(values: list[float]) -> float | None:
    return max(values, default=None)


def _fb(setting: str, method: str, cells: Sequence[str] = LARGER) -> Value:
    return lambda results: _most([row.fb for row in results.rows(setting, [method], cells)])


def _over(
    setting: str, ours: Sequence[str], others: Sequence[str], cells: Sequence[str] | None = None
) -> Value:
    return lambda results: _most(
        results.over_fastest(setting, ours, others, cells or results.cells)
    )


def _median_over(setting: str, ours: Sequence[str]) -> Value:
    def value(results: Results) -> float | None:
        ratios = sorted(results.over_fastest(setting, ours, LIBRARIES, results.cells))
        # At least half of the problems are at or below it.
        return ratios[(len(ratios) - 1) // 2] if ratios else None

    return value


def _memory(results: Results) -> float | None:
    rows = results.rows(IDENTITY.name, [FIRST_ORDER], results.cells)
    return _most([row.mib / row.unit_mib for row in rows if row.mib is not None])


def _waits(setting: str, ours: Sequence[str]) -> Value:
    return lambda results: _most(
        [float(row.waits or 0) for row in results.rows(setting, ours, results.cells)]
    )


def _launches(results: Results) -> float | None:
    ratios = []
    for setting, ours in ((IDENTITY, [FIRST_ORDER, GENERAL]), (NEUMANN, SERIES), (CG, INVERSE)):
        for row in results.rows(setting.name, ours, results.cells):
            plain = results.get(row.cell, setting.name, PLAIN.name)
            if plain is not None and plain.launches and row.launches is not None:
                ratios.append(row.launches / plain.launches)
    return _most(ratios)


def _rows(results: Results) -> float | None:
    few, many = (results.get(cell, NEUMANN.name, *SERIES) for cell in TABLES)
    return None if few is None or many is None else many.ms / few.ms


def _training(what: str) -> Value:
    def value(results: Results) -> float | None:
        times = results.trainings.get(what)
        return times[WITH_IDENTITY] / times[BASE] if times else None

    return value


# A truncated series may sample its verdict. Conjugate gradients, which aim at the inverse, measure
# it in every step.
SERIES, INVERSE = (SAMPLED, GENERAL), (GENERAL,)
NAMED = ", ".join(LARGER)
EVERYONE = (PLAIN.name, *LIBRARIES)

GOALS: tuple[Goal, ...] = (
    Goal(f"first-order, in fb, the worst of {NAMED}", 2.1, _fb(IDENTITY.name, FIRST_ORDER)),
    Goal(
        f"first-order / fastest other identity, the worst of {NAMED}",
        0.75,
        _over(IDENTITY.name, [FIRST_ORDER], EVERYONE, LARGER),
    ),
    Goal("first-order, peak memory / a training step's, the worst", 1.3, _memory),
    Goal("GPT-2 shape, all parameters: Identity / without weights", 1.25, _training(ALL)),
    Goal("GPT-2 shape, LoRA: Identity / without weights", 1.2, _training(LORA)),
    Goal("Neumann 3 / plain autograd, the worst", 1.05, _over(NEUMANN.name, SERIES, [PLAIN.name])),
    Goal("Neumann 3 / fastest library, the median", 1.0, _median_over(NEUMANN.name, SERIES)),
    Goal("Neumann 3 / fastest library, the worst", 1.1, _over(NEUMANN.name, SERIES, LIBRARIES)),
    Goal("CG 10 / plain autograd, the worst", 1.05, _over(CG.name, INVERSE, [PLAIN.name])),
    Goal("CG 10 / fastest library, the median", 1.0, _median_over(CG.name, INVERSE)),
    Goal("CG 10 / fastest library, the worst", 1.1, _over(CG.name, INVERSE, LIBRARIES)),
    Goal(f"Gauss-Newton 3, in fb, the worst of {NAMED}", 7.0, _fb(NEUMANN.name, GAUSS_NEWTON)),
    Goal("sample space, in fb, one output", 3.5, _fb(CG.name, SAMPLE_SPACE, list(ONE_OUTPUT))),
    Goal("waits, first-order, the worst", 3.0, _waits(IDENTITY.name, [FIRST_ORDER])),
    Goal("waits, Neumann 3, the worst", 3.0, _waits(NEUMANN.name, SERIES)),
    Goal("operations launched / plain autograd's, the worst", 1.15, _launches),
    Goal("1 M table rows / 10 k, Neumann 3", 1.2, _rows),
)


def goals(results: Results) -> str:
    """A table of the targets, with what was measured and whether they are reached."""
    body = []
    for goal in GOALS:
        value = goal.value(results)
        said = ("-", "not measured")
        if value is not None:
            said = f"{value:.2f}", "yes" if value <= goal.most else "no"
        body.append([goal.text, f"{goal.most:g}", *said])
    return markdown(
        ["the project's own target, on the problems of this run", "at most", "measured", "reached"],
        body,
    )
