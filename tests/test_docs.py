"""The pages that people read: no line of them vanishes, and the files that they name exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


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


def named_paths(text: str) -> list[str]:
    """Paths in code marks and in links, as patterns: any word stands for a ``<name>``."""
    top = "|".join(path.name for path in ROOT.iterdir() if path.is_dir() and path.name[0] != ".")
    in_code = re.findall(rf"`((?:{top})/[\w./<>-]*)`", text)
    in_links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    return [re.sub(r"<\w+>", "*", path) for path in in_code + in_links]


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_the_files_that_a_page_names_exist(name: str) -> None:
    paths = named_paths((ROOT / name).read_text(encoding="utf-8"))
    # docs/_build is what a command makes.
    missing = [p for p in paths if not p.startswith("docs/_build") and not any(ROOT.glob(p))]
    assert paths and not missing


def test_every_target_of_make_is_listed_and_every_command_of_a_page_is_a_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    listed = set(re.findall(r"^([a-z]+):.*## ", makefile, re.MULTILINE))
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert listed == set(phony.split())
    for name in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        used = re.findall(r"(?:^|`)make ([a-z]+(?: [a-z]+)*)", text, re.MULTILINE)
        assert used and {target for line in used for target in line.split()} <= listed, name
