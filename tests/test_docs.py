"""The pages that people read: no line of them vanishes, and what they name exists."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def outside_fences(text: str) -> Iterator[tuple[int, str]]:
    """The numbered lines of a page that are not code, without quote and list marks."""
    fence = ""
    for number, line in enumerate(text.splitlines(), 1):
        line = re.sub(r"^\s*((>|[-*+]|\d+[.)])\s+)*", "", line)
        opening = re.match(r"`{3,}|~{3,}", line)
        if not fence:
            fence = opening[0] if opening else ""
            if not fence:
                yield number, line
        elif opening and opening[0].startswith(fence) and not line.strip(fence[0] + " "):
            fence = ""


def comments(text: str) -> list[int]:
    """Numbers of the lines that MyST leaves out: they begin with a percent sign."""
    return [number for number, line in outside_fences(text) if line.startswith("%")]


@every_page
def test_no_line_of_a_page_vanishes(page: Path) -> None:
    assert not comments(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("40\n% of the labels", [2]),
        ("- a list of 40\n  % of the labels\n- % too", [2, 3]),
        ("> quoted\n> % of the labels", [2]),
        ("40 % of the labels", []),
        ("```text\n% in code\n```\n% after it", [4]),
        ("````\n```\n% in code\n```\n````", []),
        ("~~~\n```\n% in code\n~~~\n% after it", [5]),
        ("```{doctest}\n>>> 7\n% in code", []),
    ],
)
def test_a_line_that_vanishes_is_found(text: str, expected: list[int]) -> None:
    assert comments(text) == expected
