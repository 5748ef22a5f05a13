"""The command line: each command once, resuming, and one readable sentence for bad input."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import amazon_files
import pytest
from scenarios import gappy_log

import cdr.runs.grid
import cdr.runs.runner
from cdr.data import generator
from cdr.report import plots
from cdr.reproduce import main
from cdr.training.presets import preset

pytest.importorskip("matplotlib")

BRIEF = (
    *("--inner.epochs", "1", "--inner.batch-size", "64", "--outer.interval", "2"),
    *("--search.epochs", "1", "--search.folds", "2"),
)
FILES = {
    *("table.md", "table.csv", "report.html", "config.json", "command.txt", "environment.json"),
    *("log.txt", "runs.jsonl"),
}
CURVES = {"curves.png", "curves.svg"}
# Trainings of one seed on one data set, and the pictures.
COMMANDS = {
    "table1": (4, {"differences"}),
    "table2": (4, {"differences"}),
    "table3": (5, {"differences"}),
    "table5": (4, {"differences"}),
    "figure3": (1, {"figure3"}),
    "figure4": (1, {"figure4"}),
    "figure5": (9, {"figure5"}),
    "figure6": (1, {"figure6"}),
    "generated": (7, {"differences"}),
    "evidence": (20, {"differences"}),
    "behaviors": (14, {"differences"}),
}


@pytest.fixture(scope="module")
def small() -> Iterator[None]:
    """Generated data of 60 users."""
    made = generator.generate

    def generate(kind: str, **told: Any) -> Any:
        sizes = {"num_users": 60, "num_source_items": 200, "num_target_items": 100}
        return made(kind, **(sizes | told))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generator, "generate", generate)
        cdr.runs.runner.clear_loaded()
        yield
    cdr.runs.runner.clear_loaded()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("grid")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "results" / "one"


def run(*arguments: Any) -> int:
    """The exit code, of the parser's exit too."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as end:
        return int(end.code or 0)


@pytest.mark.slow
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("command", COMMANDS)
def test_each_command(
    command: str, cache: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainings, pictures = COMMANDS[command]
    told = ("--data", "g1", "--models", "twotower", "--seeds", 1, "--cache", cache, "--out", out)
    assert run(command, *told, *BRIEF) == 0
    drawn = {f"{name}.{ending}" for name in pictures for ending in ("png", "svg")}
    assert set(os.listdir(out)) == FILES | CURVES | drawn
    assert os.listdir(out.parent) == ["one"]
    lines = [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]
    assert len(lines) == trainings
    assert all(line["epochs"] >= 1 and line["seconds"] > 0 for line in lines)
    page = (out / "report.html").read_text()
    assert page.count("data:image/svg+xml") == len(pictures) + 1
    assert not re.search(r'(src|href)="(?!data:)', page), "the page needs other files"
    printed = capsys.readouterr()
    assert printed.err == "" and f"everything is in {out}/" in printed.out
    title = (out / "table.md").read_text().splitlines()[0].removeprefix("## ")
    assert f"<title>{title}</title>" in page and title in printed.out.splitlines()
    assert (out / "table.csv").read_text().count("\n") > 1
    # Every study tells of trainings that have learned nothing, whether it has a table or not.
    remarks = {line["key"]: line["remark"] for line in lines}  # rows may share a training
    told = f"Nothing was learned in {sum(map(bool, remarks.values()))} of {len(remarks)} trainings"
    assert (told in (out / "table.md").read_text()) == any(remarks.values())


@pytest.mark.usefixtures("small")
def test_seeds_begin_where_they_are_told_to(
    cache: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = ("--data", "g1", "--models", "twotower", "--seeds", 2, "--cache", cache, "--out", out)
    assert run("figure3", *told, "--first-seed", 7, *BRIEF) == 0
    lines = [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]
    assert [line["seed"] for line in lines] == [7, 8]
    assert run("figure3", *told, "--first-seed", -1, *BRIEF) == 2
    assert "--first-seed -1: it must be 0 or more" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_rows_are_chosen_by_their_names_and_join_those_of_earlier_commands(
    tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "grid"
    told = ("--data", "g1", "--models", "twotower", "--seeds", 1, "--cache", cache, "--out", out)
    assert run("behaviors", *told, "--methods", "oracle", *BRIEF) == 0
    lines = [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]
    assert [line["method"] for line in lines] == ["base", "oracle"]
    assert run("behaviors", *told, "--methods", "0", "gamma-2", "oracle", *BRIEF) == 0
    assert f"2 trained, 2 from {cache}/" in capsys.readouterr().out
    assert run("behaviors", *told, "--methods", "oracle", "gama-2", *BRIEF) == 2
    assert "--methods gama-2: behaviors has no such row; it has S, 0" in capsys.readouterr().err
    assert run("table4", *told, "--methods", "S", *BRIEF) == 2
    assert "table4 has no such row; it has none" in capsys.readouterr().err


@pytest.mark.usefixtures("small")
def test_statistics_need_no_training(cache: Path, out: Path) -> None:
    assert run("table4", "--data", "g1", "g2", "--cache", cache, "--out", out) == 0
    assert set(os.listdir(out)) == FILES
    text = (out / "table.md").read_text()
    assert "| G1 | 60 |" in text and "| Books-Movies | 37,388 |" in text


AMAZON = ("--data", "amazon:Books:Toys", "--models", "twotower", "--seeds", 1)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return amazon_files.write_all(tmp_path / "data" / "amazon").parent


def test_amazon_is_trained_on(cache: Path, out: Path, root: Path) -> None:
    tiny = ("--inner.epochs", 1, "--search.epochs", 1, "--inner.batch-size", 8)
    tiny = (*tiny, "--outer.interval", 1)
    told = (*AMAZON, "--root", root, "--cache", cache)
    assert run("table1", *told, "--out", out, *tiny) == 0
    text = (out / "table.md").read_text()
    assert "| model | Books → Toys AUC |" in text and "TwoTower+ours" in text
    assert "3 of 39 lines of reviews_Books_5.json.gz are not reviews and left out" in text
    keys = [json.loads(line)["key"] for line in (out / "runs.jsonl").read_text().splitlines()]
    record = json.loads((cache / keys[0][:2] / keys[0] / "run.json").read_text())
    names = ("reviews_Books_5", "meta_Books", "reviews_Toys_and_Games_5", "meta_Toys_and_Games")
    content = record["data"]["content"]
    assert set(content) == {f"{name}.json.gz" for name in names}
    packed = (root / "amazon" / "meta_Books.json.gz").read_bytes()
    assert content["meta_Books.json.gz"] == hashlib.sha256(packed).hexdigest()
    # The hashes are those of the data's own cache.
    assert not (cache / "files").exists() or not list((cache / "files").glob("*Books*"))

    assert run("figure6", *told, "--out", root / "cases", *tiny) == 0
    # B0 is the one book whose title is known.
    assert "Arts (It's [a] 'title')" in (root / "cases" / "table.md").read_text()


def test_each_number_of_table4_is_judged(
    cache: Path, out: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = (*AMAZON, "--root", root, "--cache", cache)
    assert run("table4", *told, "--out", out) == 0
    rows = [line.strip("| ").split(" | ") for line in (out / "table.md").read_text().splitlines()]
    heads = ["scenario", "users", "source behaviours", "target behaviours", "source items"]
    heads += ["target items", "source trained on", "target trained on", "users without source"]
    place = rows.index(heads)
    # The counts by hand: see amazon_files. Source trained on: of days 10, 11 and 12.
    assert rows[place + 2] == ["Books → Toys", "6", "30", "30", "10", "10", "18", "18", "0"]
    printed = ["7,576", "317,646", "84,564", "134,350", "11,567", "317,646"]
    assert rows[place + 3][:7] == ["in the paper", *printed]
    assert (out / "table.md").read_text().count("MISMATCH") == 6
    assert "source behaviours: neither of the two" in (out / "table.md").read_text()

    table = {"users": 6, "source": 18, "target": 30, "source_items": 10, "target_items": 11}
    amazon_files.publish(monkeypatch, table)
    assert run("table4", *told, "--out", out) == 0
    assert "source behaviours: source after the cut" in (out / "table.md").read_text()
    with (out / "table.csv").open() as file:
        lines = [tuple(line.values())[1:] for line in csv.DictReader(file)]
    assert lines == [
        ("users", "6", "6", "match"),
        ("source behaviours", "30", "18", "MISMATCH"),
        ("target behaviours", "30", "30", "match"),
        ("source items", "10", "10", "match"),
        ("target items", "10", "11", "MISMATCH"),
        ("source trained on", "18", "18", "match"),
        ("target trained on", "18", "", ""),
        ("users without source", "0", "", ""),
    ]


def test_missing_files_of_amazon_are_named_at_once(
    cache: Path, out: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = ("--data", "amazon", "--root", root, "--cache", cache, "--out", out)
    assert run("table1", *told) == 2
    error = capsys.readouterr().err
    assert error.count("meta_Electronics.json.gz") == 1 and error.count(".json.gz") == 10
    assert error.rstrip().endswith("all are there: --data amazon:Books:Toys_and_Games")


def test_atomic_files_are_trained_on(cache: Path, out: Path, tmp_path: Path) -> None:
    for name, log in zip(("books", "toys"), gappy_log(), strict=True):
        head = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        rows = "".join("\t".join(map(str, row)) + "\n" for row in zip(*log.values(), strict=True))
        (tmp_path / f"{name}.inter").write_text(head + rows)
    told = ("--data", "recbole:books:toys", "--root", tmp_path, "--models", "twotower")
    assert run("table1", *told, "--seeds", 1, *BRIEF, "--cache", cache, "--out", out) == 0
    assert "| model | books → toys AUC |" in (out / "table.md").read_text()
    key = json.loads((out / "runs.jsonl").read_text().splitlines()[0])["key"]
    record = json.loads((cache / key[:2] / key / "run.json").read_text())
    assert set(record["data"]["content"]) == {"books: interactions", "toys: interactions"}


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_the_same_command_goes_on_and_updates_its_folder(
    tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = ("table1", "--models", "twotower", "--cache", tmp_path / "grid", "--out", out, *BRIEF)
    assert run(*told, "--seeds", 1) == 0
    assert "4 trained, 0 from" in capsys.readouterr().out
    assert run(*told, "--seeds", 2) == 0
    assert "4 trained, 4 from" in capsys.readouterr().out
    (tmp_path / "unrelated").mkdir()
    assert run(*told, "--seeds", 2) == 0
    assert "0 trained, 8 from" in capsys.readouterr().out
    assert os.listdir(out.parent) == ["one"]
    assert "p (seeds)" in (out / "table.md").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_the_command_may_stand_anywhere(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # A folder called as another command, whose models are others.
    told = ("--out", "figure5", "--cache", cache, *BRIEF, "--seeds", 1, "table5")
    for _ in range(2):  # the second time it takes the place of the first
        assert run(*told) == 0
        config = json.loads((tmp_path / "figure5" / "config.json").read_text())
        assert (config["command"], config["models"]) == ("table5", ["dasl"])


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_each_model_starts_from_its_own_preset(cache: Path, out: Path) -> None:
    told = ("--models", "conet", "minet", "--preset", "paper", "--seeds", 1)
    brief = (*BRIEF, "--model.dim", 4, "--perceptron.history", 6)
    assert run("figure4", *told, *brief, "--cache", cache, "--out", out) == 0
    found = json.loads((out / "config.json").read_text())
    assert list(found["options"]) == found["models"] == ["conet", "minet"]
    for model, options in found["options"].items():
        assert options["model"]["dim"] == 4 and options["perceptron"]["history"] == 6
        assert options["outer"]["lr"] == preset("paper", model).outer.lr
    assert "hidden" in found["options"]["conet"]["model"]


@pytest.mark.usefixtures("small")
def test_a_failed_training_leaves_the_rest(
    cache: Path, out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = cdr.runs.runner.train

    def train(variant: str, *arguments: Any, **told: Any) -> Any:
        if variant in ("ours", "search"):
            raise ValueError("it broke; lower --outer.lr")
        return trained(variant, *arguments, **told)

    monkeypatch.setattr(cdr.runs.runner, "train", train)
    monkeypatch.chdir(cache)
    told = ("--models", "twotower", "--seeds", 1, "--out", out, "--search.inner-lr", "0.004")
    assert run("table1", *told, *BRIEF, "--cache", cache, "--inner.lr", 0.004) == 1
    text = (out / "table.md").read_text()
    assert "TwoTower-S" in text and "TwoTower+ours" not in text
    assert "Missing, for its training failed: G1 twotower ours seed 0 (it broke" in text
    assert "ours seed 0 failed: it broke" in (out / "log.txt").read_text()
    assert run("figure3", *told, *BRIEF, "--cache", cache) == 2
    assert "--out" in capsys.readouterr().err
    assert run("figure3", *told[:-4], *BRIEF, "--cache", cache, "--search.inner-lr", 0.004) == 2
    assert "every training failed; the first" in capsys.readouterr().err
    assert not Path("results").exists()


@pytest.mark.usefixtures("small")
def test_an_interrupted_command_keeps_what_is_finished(
    tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = cdr.runs.runner.train

    def train(variant: str, *arguments: Any, **told: Any) -> Any:
        if variant == "base":
            raise KeyboardInterrupt
        return trained(variant, *arguments, **told)

    told = ("table1", "--models", "twotower", "--seeds", 1, "--cache", tmp_path / "grid", *BRIEF)
    with monkeypatch.context() as patch:
        patch.setattr(cdr.runs.runner, "train", train)
        assert run(*told, "--out", out) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert not out.parent.exists()
    assert run(*told, "--out", out) == 0
    assert "2 trained, 2 from" in capsys.readouterr().out


def test_names_in_data_are_escaped(ratings: Path, tmp_path: Path, out: Path) -> None:
    text = ratings.read_text()
    header = text.splitlines()[0].replace('"', "").split(",")
    assert header[-1] == "domain"
    odd = tmp_path / "odd.csv"
    odd.write_text(text.replace("books", "<b>books"))
    told = ("--data", f"{odd}:<b>books:toys", "--models", "twotower", "--seeds", 1, *BRIEF)
    assert run("figure4", *told, "--cache", tmp_path / "grid", "--out", out) == 0
    page = (out / "report.html").read_text()
    assert "<b>" not in page and "&lt;b&gt;books → toys" in page


@pytest.mark.usefixtures("small")
def test_machines_train_a_part_each_and_one_shows_all(
    tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = ("--data", "g1", "--models", "twotower", "--seeds", 1, *BRIEF, "--out", out)
    places = [tmp_path / f"machine-{k}" for k in (1, 2, 3)]
    kept = []
    for k, place in enumerate(places, 1):
        assert run("generated", *told, "--cache", place, "--share", f"{k}/3") == 0
        assert not out.exists()
        kept.append({path.parent.name for path in place.glob("*/*/run.json")})
    # retrain waits for search, and goes with it.
    assert sorted(map(len, kept)) == [2, 2, 3] and len(set.union(*kept)) == 7
    for place in places:
        shutil.copytree(place, tmp_path / "all", dirs_exist_ok=True)
    capsys.readouterr()
    assert run("generated", *told, "--cache", tmp_path / "all") == 0
    assert "0 trained, 7 from" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ("--data ebay: give g1", "table1 --data ebay"),
        ("--root is missing", "table1 --data amazon5"),
        ("--root nowhere.*amazon5/", "table1 --root nowhere"),
        ("There is no file nowhere.csv", "table1 --data nowhere.csv:a:b"),
        ("--models resnet: there is no such model", "table1 --models resnet"),
        ("--seeds 0: it must be at least 1", "table1 --seeds 0"),
        ("--jobs 0", "table1 --jobs 0"),
        ("--share 5/4", "table1 --share 5/4"),
        ("--share 2: give K/N", "table1 --share 2"),
        ("--device tpu cannot be used", "table1 --device tpu"),
        ("--stack-seeds goes with one data set", "table1 --stack-seeds --seeds 2"),
        ("invalid choice|expected|Required", "table9"),
        ("--inner.lr -1", "table1 --inner.lr -1"),
        ("nope", "table1 --nope 3"),
    ],
)
def test_bad_arguments(
    words: str, arguments: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results"
    assert run(*arguments.split(), "--out", out, "--cache", tmp_path / "grid") == 2
    told = capsys.readouterr().err
    assert re.search(words, told) and "Traceback" not in told
    assert not out.exists()


def untouched(*arguments: Any, **told: Any) -> None:
    pytest.fail("it went on")


def test_a_folder_of_something_else_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cdr.runs.grid, "run", untouched)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("x")
    assert run("table1", "--out", mine, "--cache", tmp_path / "grid") == 2
    assert "is not a folder of results and is left as it is" in capsys.readouterr().err
    (mine / "config.json").write_text('{"command": "table2", "seeds": 3}\n')
    assert run("table1", "--out", mine, "--cache", tmp_path / "grid") == 2
    assert "was made by reproduce.py table2 and is left" in capsys.readouterr().err
    assert (mine / "thesis.tex").read_text() == "x"
    for other in ("[1]", '{"variants": ["S"]}', "\N{LATIN SMALL LETTER E WITH ACUTE}"):
        (mine / "config.json").write_text(other, encoding="latin-1")
        assert run("table1", "--out", mine, "--cache", tmp_path / "grid") == 2
        assert "is not a folder of results" in capsys.readouterr().err


def test_a_place_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cdr.runs.grid, "run", untouched)
    (tmp_path / "file").write_text("x")
    assert run("table1", "--out", tmp_path / "file" / "one", "--cache", tmp_path / "grid") == 2
    assert "no folder can be made" in capsys.readouterr().err


def test_without_matplotlib_nothing_is_trained(
    out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    monkeypatch.setattr(cdr.runs.grid, "run", untouched)
    assert run("table1", "--out", out) == 2
    assert "pip install matplotlib" in capsys.readouterr().err


def test_help_fits_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run("--help") == 0
    options = capsys.readouterr().out.partition("positional arguments")[2]
    assert max(map(len, options.splitlines())) <= 80
    assert "--inner.batch-size" in options and "table1,table2" in options


@pytest.mark.slow
def test_a_harm_gives_real_behaviours_an_oracle(
    ratings: Path, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("generated", "--data", f"{ratings}:books:toys", "--harm", "flip-users", *BRIEF)
    assert main([*given, "--seeds", "1", "--cache", str(tmp_path / "grid"), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "books → toys, flip-users 0.4, CoNet: the oracle, which knows the true flags" in printed
    runs = [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]
    assert {run["method"] for run in runs} >= {"base", "ours", "retrain", "oracle"}
    assert {run["scenario"] for run in runs} == {f"{ratings}:books:toys, flip-users 0.4"}
    assert all(run["weight_auc"] is not None for run in runs if run["method"] == "search")
