"""Damaged inputs end in a documented way: ``python -m tests.fuzz`` tries any number of them."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz.inputs import TOKENS, VALUES
from fuzz.targets import LOGS, TARGETS, Target, outcome

CORPUS = Path(__file__).parent / "corpus"
CLEAN = ("read", "refused")
# Targets that take long, or that draw what no shrinking makes clearer, have a few inputs here.
FEW = {"amazon": 3, "arguments": 2}
EACH = 120


@pytest.mark.parametrize("name", TARGETS)
def test_a_damaged_input_ends_in_a_documented_way(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "input"
    folder.mkdir()
    for index in range(FEW.get(name, EACH)):
        kind, told = outcome(TARGETS[name], Random(f"suite:{name}:{index}"), folder)
        assert kind in CLEAN, f"{name} {index}: {told}"


def _table(content: bytes, ending: str) -> Target:
    def write(random: Random, folder: Path) -> list[str]:
        for path in folder.iterdir():
            path.unlink()
        (folder / f"log.{ending}").write_bytes(content)
        return [f"log.{ending}"]

    return Target("table", write, TARGETS["table"].read)


cells = st.sampled_from(VALUES) | st.text(max_size=8)
rows = st.lists(st.lists(cells, min_size=4, max_size=6), max_size=6)


@given(rows, st.sampled_from(",;\t|"), st.sampled_from(["csv", "txt"]))
@settings(
    max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
def test_a_table_of_any_cells_is_read_or_refused(
    tmp_path: Path, rows: list[list[str]], separator: str, ending: str
) -> None:
    head = separator.join(["user", "item", "rating", "timestamp", "domain"])
    body = "\n".join(separator.join(row) for row in rows)
    known = LOGS[0].decode().partition("\n")[2].replace(",", separator)
    content = f"{head}\n{known}{body}".encode("utf-8", "surrogatepass")
    kind, told = outcome(_table(content, ending), Random(0), tmp_path)
    assert kind in CLEAN, told


@given(st.binary(max_size=200), st.sampled_from(TOKENS))
@settings(
    max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
def test_any_bytes_are_read_or_refused(tmp_path: Path, content: bytes, token: bytes) -> None:
    for ending in ("csv", "csv.gz", "parquet"):
        kind, told = outcome(_table(content + token, ending), Random(0), tmp_path)
        assert kind in CLEAN, told


@pytest.mark.parametrize("path", sorted(CORPUS.iterdir()), ids=lambda path: path.name)
def test_what_has_failed_once_does_not_fail_again(path: Path, tmp_path: Path) -> None:
    """Files named TARGET-WHAT.ENDING, each of which was a mistake of a reader."""
    name, ending = path.name.split("-")[0], path.name.partition(".")[2]
    content = path.read_bytes()

    def write(random: Random, folder: Path) -> list[str]:
        stem = "log" if name == "table" else name
        (folder / f"{stem}.{ending}").write_bytes(content)
        return [f"{stem}.{ending}"]

    kind, told = outcome(Target(name, write, TARGETS[name].read), Random(0), tmp_path)
    assert kind in CLEAN, told
