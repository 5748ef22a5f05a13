"""A hypergradient by reweight, plain autograd, TorchOpt, Betty, BOAT and JAX, side by side.

    python benchmarks/peers.py [--quick] [--json FILE]

All programs get the same model, batches and weighter, and solve the same system: no product with
the Hessian (identity), three terms of Neumann's series, or ten steps of conjugate gradients. Equal
numbers are checked first. Then all take turns in one process, on one thread. The peers come with
the extra [bench]; one that is not installed is left out. Last, a language model is trained with and
without learned weights.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks._measure import machine
from benchmarks._peers.cells import CLASSIFIERS, ONE_OUTPUT, TABLES, Case
from benchmarks._peers.goals import Results, goals
from benchmarks._peers.method import SETTINGS, Method
from benchmarks._peers.peers import all_methods, versions
from benchmarks._peers.plain import PLAIN
from benchmarks._peers.race import Measured, Race
from benchmarks._peers.report import LEGEND, details, ratios, trainings
from benchmarks._peers.trainings import SMALL, Shape, measured

# The least seconds and rounds of a problem in a setting, and of a training.
FULL, QUICK = (3.0, 3), (0.2, 3)
QUICK_CELLS = ("MLP 10 k", "table, 10 k rows")


def race(
    cells: dict[str, Callable[[], Case]],
    methods: Sequence[Method],
    seconds: float,
    rounds: int,
) -> list[Measured]:
    """All measurements; each part is printed as soon as it is known."""
    rows: list[Measured] = []
    said: set[tuple[str, str]] = set()
    for cell, make in cells.items():
        case = make()
        # The others show rows of ours that the peers have nothing like.
        alone = [method for method in methods if method.ours or method is PLAIN]
        chosen = methods if cell in CLASSIFIERS else alone
        for setting in SETTINGS:
            contest = Race(cell, case, setting, chosen)
            found = list(contest.run(seconds, rounds))
            print(details(found))
            for skipped in contest.skipped.items():
                if skipped not in said:
                    print(": not here: ".join(skipped))
                    said.add(skipped)
            print(flush=True)
            rows += found
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two small problems, few rounds")
    parser.add_argument("--json", type=Path, help="also write the measurements to this file")
    arguments = parser.parse_args()
    started = time.monotonic()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # verdicts on untrained networks, and peers' deprecations
    cells = CLASSIFIERS | ONE_OUTPUT | TABLES
    if arguments.quick:
        cells = {name: cells[name] for name in QUICK_CELLS}
    seconds, rounds = QUICK if arguments.quick else FULL
    everyone = all_methods()
    print(machine(torch.device("cpu")))
    print(", ".join(f"{name} {version}" for name, version in versions().items()))
    print(LEGEND)
    for method in everyone:
        if method.missing:
            print(f"{method.name} is left out: {method.missing}")
    print(flush=True)
    rows = race(cells, [m for m in everyone if not m.missing], seconds, rounds)
    trained = measured(SMALL if arguments.quick else Shape(), seconds, rounds)
    print(ratios(rows), trainings(trained), goals(Results(rows, trained)), sep="\n\n")
    print(f"\n{time.monotonic() - started:.0f} s")
    if arguments.json:
        report = {
            "machine": machine(torch.device("cpu")),
            "versions": versions(),
            "quick": arguments.quick,
            "rows": [asdict(row) for row in rows],
            "trainings": trained,
        }
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
