"""The library on models of other packages: two tables, and every warning.

    python benchmarks/clients/run.py [NAME ...] [--json FILE]

NAME is a script of this folder without its ending; by default all are run, each in a process of its
own. The tables are in Markdown, as they stand in the documentation.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from benchmarks._measure import in_fresh_process
from benchmarks.clients._report import Findings, findings

SCRIPTS = sorted(path.stem for path in Path(__file__).parent.glob("[!_]*_*.py"))


def found(name: str) -> Findings:
    return findings(importlib.import_module(f"benchmarks.clients.{name}").client)


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.1g}"


def outcome(row: Findings) -> str:
    """The check in a few words."""
    if row.setup_ok is None:
        return "an error"
    if row.exact_error is None or math.isnan(row.exact_error):
        return "not comparable"
    return f"{row.exact_error:.0e}" + (f", damping {row.damping:.1g}" if row.damping else "")


def figures(row: Findings) -> list[str]:
    numbers = [number(row.residual), outcome(row), number(row.reference)]
    return [row.client, row.mode, *numbers, "; ".join(row.warnings) or "none"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SCRIPTS)}")
    parser.add_argument("--json", type=Path, help="also write the findings to this file")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(SCRIPTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join(SCRIPTS)}")
    names = arguments.names or SCRIPTS
    rows = [in_fresh_process(found, name) for name in names]
    print(f"torch {version('torch')}, Python {platform.python_version()}, 1 thread\n")
    code = [[f"`{n}.py`", f"`{r.losses}`", f"`{r.wrap}`"] for n, r in zip(names, rows, strict=True)]
    print(table(["script", "`losses` returns", "wrapped by"], code) + "\n")
    header = ["client", "mode", "residual", "check, exact solve", "reference", "warnings"]
    print(table(header, [figures(row) for row in rows]))
    for row in rows:
        print(f"\n{row.client}\n- outer step: {row.message}")
        print(f"- check, {row.seconds:.0f} s: {row.check}")
        for text in [row.advice, *row.warnings, *row.log]:
            print(f"- {text}")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(r) for r in rows], indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
