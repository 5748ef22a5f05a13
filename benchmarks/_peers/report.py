"""The tables that benchmarks/peers.py prints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks._peers.ours import FIRST_ORDER, GENERAL
from benchmarks._peers.race import Measured
from benchmarks._peers.trainings import BASE

LEGEND = """\
ms        processor time of a hypergradient, the median over rounds in which every program ran once.
fb        the same in forward and backward passes of the inner loss without weights.
MiB       memory of its tensors at the peak. In brackets: that of a forward and a backward pass.
launches  operations of torch, without views.
waits     operations whose values Python waits for: on a GPU, each stops the stream.
apart     relative difference from plain autograd (Gauss-Newton: from its own reference), in float64
          on 16 samples, and in float32 on the batch that is timed. "other numbers": not equal,
          timed all the same, and never counted as the fastest."""


def details(rows: Sequence[Measured]) -> str:
    """One line for each contestant on one problem in one setting."""
    first = rows[0]
    lines = [
        f"{first.cell}, {first.setting}",
        f"{'':25}{'ms':>9}{'fb':>7}{'MiB':>8}{'':8}{'launches':>9}{'waits':>6}  apart",
    ]
    for row in rows:
        memory = "" if row.mib is None else f"{row.mib:8.1f} {f'({row.unit_mib:.1f})':7}"
        counted = f"{_count(row.launches):>9}{_count(row.waits):>6}"
        in_float64 = "" if row.apart_float64 is None else f"{row.apart_float64:.0e}"
        line = f"{row.method:25}{row.ms:9.2f}{row.fb:7.2f}{memory:16}{counted}"
        line += f"{in_float64:>7}{row.apart:7.0e}{'' if row.agrees else '  other numbers'}"
        lines.append(line)
    return "\n".join(lines)


def _count(number: int | None) -> str:
    return "" if number is None else str(number)


def ratios(rows: Sequence[Measured]) -> str:
    """A table of time of ours over that of each other, by problem and setting.

    Ours are the defaults: with the identity, first-order steps. A cell has a ratio for each
    setting. One in brackets has other numbers.
    """
    settings = _names(row.setting for row in rows)
    others = _names(row.method for row in rows if not row.ours)
    cells = _names(row.cell for row in rows)
    place = {(row.cell, row.setting, row.method): row for row in rows}

    def default(cell: str, setting: str) -> Measured | None:
        return place.get((cell, setting, FIRST_ORDER)) or place.get((cell, setting, GENERAL))

    def ratio(cell: str, setting: str, other: str) -> str:
        ours, theirs = default(cell, setting), place.get((cell, setting, other))
        if ours is None or theirs is None:
            return "-"
        text = f"{ours.ms / theirs.ms:.2f}"
        return text if theirs.agrees else f"({text})"

    def column(cell: str, other: str) -> str:
        found = [ratio(cell, setting, other) for setting in settings]
        return " · ".join(found) if set(found) != {"-"} else "-"

    def own(cell: str) -> str:
        found = [default(cell, setting) for setting in settings]
        return " · ".join("-" if row is None else f"{row.fb:.1f}" for row in found)

    head = [f"ours / peer: {' · '.join(settings)}", *others, "ours in fb"]
    body = [[cell, *(column(cell, other) for other in others), own(cell)] for cell in cells]
    return markdown(head, body)


def trainings(found: dict[str, dict[str, float]]) -> str:
    """Time of trainings with weights over time of those without."""
    names = [name for name in next(iter(found.values())) if name != BASE]
    body = [
        [what, *(f"{times[name] / times[BASE]:.2f}" for name in names)]
        for what, times in found.items()
    ]
    return markdown(["with weights / without", *names], body)


def markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table, its columns aligned."""
    widths = [max(len(row[i]) for row in (head, *body)) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        cells = (f"{cell:{width}}" for cell, width in zip(row, widths, strict=True))
        return f"| {' | '.join(cells)} |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([line(head), rule, *map(line, body)])


def _names(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
