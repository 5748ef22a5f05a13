"""``run_biao.py data``: what it prints and how it ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import amazon_files
import pytest

from cdr.data import CrossDomainData
from cdr.run_biao import main
from cdr.runs import data_command

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """The exit code, what was printed, and what was complained of, in single spaces."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = main(["data", *map(str, arguments)])
        told = capsys.readouterr()
        return code, " ".join(told.out.split()), " ".join(told.err.split())

    return call


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return amazon_files.write_all(tmp_path)


def test_amazon_is_compared_with_the_paper(root: Path, run: Run) -> None:
    code, out, err = run("amazon", "--root", root, "--scenarios", "Books-Toys")
    assert (code, err) == (0, "")
    for part in (
        "Amazon Books → Toys_and_Games: 6 users",
        "source: 30 behaviours (18 to train on), 10 items",
        "target: 30 behaviours (18 to train on, 6 valid, 6 test), 10 items",
        "3 of 39 lines of reviews_Books_5.json.gz are not reviews",
        "Table 4, Books-Toys paper here",
        "users 7,576 6 MISMATCH",
        "source before the cut 317,646 30 MISMATCH",
        "source after the cut 317,646 18 MISMATCH",
        "What the paper counts as source behaviours: neither of the two",
        "Leak audit: passed. No history of 18 source and 30 target behaviours holds its candidate",
    ):
        assert part in out


def test_the_reading_that_matches_is_named(
    root: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = {"users": 6, "source": 18, "target": 30, "source_items": 10, "target_items": 10}
    amazon_files.publish(monkeypatch, table)
    code, out, _ = run("amazon", "--root", root, "--source", "Books", "--target", "Toys")
    assert code == 0 and "users 6 6 match" in out
    assert "source before the cut 18 30 MISMATCH source after the cut 18 18 match" in out
    assert "counts as source behaviours: source after the cut" in out


def test_several_scenarios_end_in_a_count(root: Path, run: Run) -> None:
    code, out, _ = run("amazon", "--root", root, "--scenarios", "Books-Toys", "Toys-Books")
    assert code == 0 and "Amazon Toys_and_Games → Books: 6 users" in out
    assert out.endswith("0 of 1 scenarios match; 0 with a leak")  # the paper has one of them


def test_files_missing_for_all_scenarios_are_named_at_once(root: Path, run: Run) -> None:
    code, out, err = run("amazon", "--root", root)
    assert (code, out) == (2, "")
    assert err.count("meta_Electronics.json.gz") == 1 and "meta_Books.json.gz" not in err
    assert err.count(".json.gz") == 10
    assert err.endswith("For some scenarios all are there: --scenarios Books-Toys")


def test_a_leak_is_told_and_ends_in_one(
    gappy: CrossDomainData, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = gappy.source_history
    seen = replace(history, end=history.end.clone())
    later = (history.end < len(history.items)).nonzero()[0]
    seen.end[later] = len(history.items)
    leaky = replace(gappy, source_history=seen)
    monkeypatch.setattr(data_command, "load", lambda *_, **__: leaky)
    code, out, err = run("x.csv", "--source", "a", "--target", "b")
    assert (code, err) == (1, "") and "Leak audit: FAILED. Leak: source_history" in out


def test_own_files_and_generated_data_are_audited(ratings: Path, run: Run, small: None) -> None:
    code, out, _ = run(ratings, "--source", "books", "--target", "toys")
    assert code == 0 and out.startswith("books → toys: 60 users") and "audit: passed" in out
    assert "MISMATCH" not in out and "match" not in out
    code, out, _ = run("g1")
    assert code == 0 and out.startswith("G1: 60 users") and "audit: passed" in out


@pytest.fixture
def small(tiny: CrossDomainData, monkeypatch: pytest.MonkeyPatch) -> None:
    load = data_command.load
    monkeypatch.setattr(
        data_command, "load", lambda spec, **o: tiny if spec == "g1" else load(spec, **o)
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("amazon", "--root is missing: give the folder that holds reviews_X_5.json.gz"),
        ("recbole --root x", "name two domains of recbole"),
        ("nope", "'nope' is unknown; give 'g1', 'g2'"),
        ("g1 --source-cut all", "--source-cut all goes with real data"),
        ("g1 --cache x", "--cache x goes with --data amazon"),
        ("amazon5 --root x --scenarios A-B", "--scenarios A-B goes with amazon only"),
        ("amazon --root x --scenarios A-B --source A", "in the place of --source and --target"),
        ("amazon --root x --scenarios Books", "--scenarios Books: give SOURCE-TARGET, such as"),
        ("epinions --root x --items y", "--items y goes with a file of ratings"),
    ],
)
def test_bad_arguments(arguments: str, words: str, run: Run) -> None:
    code, out, err = run(*arguments.split())
    assert (code, out) == (2, "") and words in err
