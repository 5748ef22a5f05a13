"""Print what happens to every input, by kind; the exit code is 1 if any is ``WRONG``.

python -m tests.habits [A-E ...] [-k words of a name]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from _support.habits import Habit, Outcome, outcome
from habits.inputs import HABITS

KINDS = {
    "A": "a model that does not follow when parameters are put in its place",
    "B": "θ is what the optimizers hold and move",
    "C": "looked at once, trusted for ever",
    "D": "purity",
    "E": "containers and layouts",
}


def tried(habit: Habit) -> Outcome:
    """The outcome; an input whose reference can't be computed is wrong as well."""
    try:
        return outcome(habit)
    except Exception as error:
        return Outcome("WRONG", f"the input itself: {type(error).__name__}: {error}")


def main() -> int:
    """Run the inputs asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", default=list(KINDS))
    parser.add_argument("-k", default="", help="only names that contain this")
    parser.add_argument("-q", action="store_true", help="print the counts and what is wrong only")
    options = parser.parse_args()
    torch.set_num_threads(1)
    totals: Counter[str] = Counter()
    rows = []
    for kind in options.kinds:
        print(f"\n{kind}: {KINDS[kind]}")
        counts: Counter[str] = Counter()
        start = time.perf_counter()
        for habit in HABITS:
            if habit.kind != kind or options.k not in habit.name:
                continue
            found = tried(habit)
            counts[found.kind] += 1
            if found.kind == "WRONG" or not options.q:
                print(
                    f"  {found.kind:12}{habit.name}: {' '.join(found.text.split())[:300]}",
                    flush=True,
                )
        seconds = time.perf_counter() - start
        rows.append((kind, counts, seconds))
        totals.update(counts)
    words = ("right", "refused", "not trusted", "WRONG")
    print("\n" + "".join(f"{word:>13}" for word in ("kind", "inputs", *words, "seconds")))
    for kind, counts, seconds in (*rows, ("all", totals, sum(row[2] for row in rows))):
        cells = (kind, counts.total(), *(counts[word] for word in words), f"{seconds:.0f}")
        print("".join(f"{cell!s:>13}" for cell in cells))
    return 1 if totals["WRONG"] else 0


if __name__ == "__main__":
    sys.exit(main())
