"""The command line: what a run leaves behind, and one readable sentence for bad input."""

from __future__ import annotations

import html
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
import pytest
import tyro
from scenarios import gappy_log, write_ratings

import cdr.run_biao
from cdr.common.jsonable import to_json
from cdr.data import generator
from cdr.data.own_file import load
from cdr.models import MODELS
from cdr.report import plots
from cdr.run_biao import RunBiao, main
from cdr.runs.runner import Source
from cdr.training.presets import PresetName, preset

SCRIPT = Path(cdr.run_biao.__file__)
BRIEF = (
    *("--inner.epochs", "1", "--inner.batch-size", "64", "--outer.interval", "2"),
    *("--search.epochs", "1"),
)
DOMAINS = ("--source", "books", "--target", "toys")


def run(*arguments: Any) -> int:
    """The exit code, of the parser's exit too."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as end:
        return int(end.code or 0)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "one"


@pytest.fixture(scope="module")
def finished(ratings: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a run of all variants over two seeds."""
    path = tmp_path_factory.mktemp("runs") / "one"
    assert run("--data", ratings, *DOMAINS, *BRIEF, "--seeds", 2, "--out", f"{path}/") == 0
    return path


def test_a_run_leaves_everything_behind(finished: Path) -> None:
    models = {f"model-{v}-seed{s}.pt" for v in ("S", "0", "base", "ours") for s in (0, 1)}
    texts = {"command.txt", "config.json", "environment.json", "log.txt", "metrics.json"}
    page = {"report.html", "curves.png", "curves.svg"}
    assert set(os.listdir(finished)) == models | texts | page | {"table.md", "weights.parquet"}
    assert os.listdir(finished.parent) == ["one"]


def test_the_log_has_a_line_per_epoch(finished: Path) -> None:
    lines = (finished / "log.txt").read_text().splitlines()
    epochs = [line for line in lines if " cdr INFO: " in line]
    assert len(epochs) == 8
    record = json.loads(epochs[0].partition("CoNet-S seed 0 ")[2])
    assert record["epoch"] == 1 and 0 <= record["auc"] <= 1


def test_the_metrics_are_complete(finished: Path, ratings: Path) -> None:
    found = json.loads((finished / "metrics.json").read_text())
    data = load(ratings, "books", "toys")
    assert found["data"] == {"name": "books → toys", **data.statistics}
    assert list(found["runs"]) == ["S", "0", "base", "ours"]
    untrained = ["base-ensemble", "ours-ensemble", "leniency"]
    assert list(found["table"]) == [*found["runs"], *untrained]
    for variant, runs in found["runs"].items():
        assert [r["seed"] for r in runs] == [0, 1]
        assert found["table"][variant]["auc"] == [r["test"]["auc"] for r in runs]
    told = {"difference", "p_value", "low", "high", "error"}
    assert found["table"]["ours"]["comparison"].keys() == told


def test_a_harm_to_real_behaviours_is_judged_as_generated_data_are(
    ratings: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--data", ratings, *DOMAINS, *BRIEF, "--harm", "flip-items", "--harm-seed", 3)
    assert run(*given, "--seeds", 2, "--out", out) == 0
    printed = " ".join(capsys.readouterr().out.split())  # however wide the terminal is
    assert "books → toys, flip-items 0.4 (seed 3)" in printed
    assert "the oracle, which knows the true flags, gains" in printed
    assert "Weight AUC, and that of single seeds: CoNet+ours" in printed
    assert "Known harm, flip-items 0.4 (seed 3): the labels" in printed
    found = json.loads((out / "metrics.json").read_text())
    assert list(found["table"])[:5] == ["S", "0", "base", "ours", "oracle"]
    assert all(one["weight_auc"] is not None for one in found["runs"]["ours"])
    weights = pyarrow.parquet.read_table(out / "weights.parquet")
    assert weights["relevant"].combine_chunks().false_count > 0


def test_short_users_are_counted_and_told(finished: Path) -> None:
    found = json.loads((finished / "metrics.json").read_text())
    assert found["data"]["short_users"] > 0 and found["data"]["users_without_source"] > 0
    table = (finished / "table.md").read_text()
    assert re.search(r"\d of 60 users have too few target behaviours", table)
    assert re.search(r"\d+ of 60 users have no source behaviour left", table)


def test_weights_join_back_to_the_data(finished: Path, ratings: Path) -> None:
    weights = pyarrow.parquet.read_table(finished / "weights.parquet")
    data = load(ratings, "books", "toys")
    assert weights.num_rows == 2 * len(data.source)
    assert "relevant" not in weights.column_names
    log = pyarrow.csv.read_csv(ratings)
    log = log.filter(pc.equal(log["domain"], "books"))
    labels = {
        (str(user), str(item)): rating > 3
        for user, item, rating in zip(
            *(log[c].to_pylist() for c in ("user", "item", "rating")), strict=True
        )
    }
    for seed in (0, 1):
        part = weights.filter(pc.equal(weights["seed"], seed))
        assert part.num_rows == len(data.source)
        keys = list(zip(part["user"].to_pylist(), part["item"].to_pylist(), strict=True))
        assert len(set(keys)) == len(keys)  # this log has no item twice for a user
        assert [labels[key] for key in keys] == part["label"].to_pylist()
        assert np.isfinite(part["weight"].to_numpy()).all()
        assert set(part["category"].to_pylist()) == {"others"}


def test_the_config_says_how_to_repeat_the_run(finished: Path, ratings: Path) -> None:
    config = json.loads((finished / "config.json").read_text())
    assert config["data"] == str(ratings) and config["device"] in ("cpu", "cuda")
    assert config["variants"] == ["S", "0", "base", "ours"]

    def flags(values: dict[str, Any], prefix: str = "--") -> list[str]:
        told = []
        for name, value in values.items():
            flag = prefix + name.replace("_", "-")
            if name == "options":
                told += flags(value)
            elif name == "protocol":
                told += flags(value, "--data.")
            elif isinstance(value, dict):
                told += flags(value, flag + ".")
            elif isinstance(value, bool):
                told.append(flag if value else f"{prefix}no-{flag.removeprefix(prefix)}")
            elif value is not None:
                told += [flag, *map(str, value if isinstance(value, list) else [value])]
        return told

    again = tyro.cli(RunBiao, args=flags(config))
    assert json.loads(to_json(again)) == config


def test_the_page_shows_the_run(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert "CoNet+ours" in page and "data:image/svg+xml" in page
    assert "no training row in the target" in page and "run_biao.py --data" in page


def test_the_page_does_without_matplotlib(
    ratings: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    assert run("--data", ratings, *DOMAINS, *BRIEF, "--variants", "S", "--out", out) == 0
    assert "Learning curves need matplotlib" in (out / "report.html").read_text()
    assert not (out / "curves.png").exists()


def test_a_log_of_another_kind_is_read_and_shown(
    ratings: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pyarrow.csv.read_csv(ratings).to_pydict()
    days = np.datetime64("2020-01-01") + np.array(table["timestamp"], dtype="timedelta64[D]")
    rows = zip(table["user"], table["item"], table["rating"], days, table["domain"], strict=True)
    lines = [f"{u};{i};{str(r / 10).replace('.', ',')};{day};{d}\r\n" for u, i, r, day, d in rows]
    path = tmp_path / "excel.csv"
    path.write_text("\ufeffUser;Item;Rating;Timestamp;Domain\r\n" + "".join(lines))
    items = tmp_path / "items.csv"
    titles = [f'{n};{"<b>" if n % 2 else "$x"};"The ""{n}th"" <i>book</i>"\n' for n in range(100)]
    items.write_text("item;category;title\n" + "".join(titles))
    told = ("--data", path, *DOMAINS, *BRIEF, "--items", items, "--variants", "base", "ours")
    assert run(*told, "--out", out) == 2
    assert "Pass --like-threshold: with 0.2, " in capsys.readouterr().err
    assert run(*told, "--like-threshold", 0.3, "--out", out) == 0
    lines = capsys.readouterr().out.splitlines()
    start = " ".join(lines[: next(n for n, line in enumerate(lines) if "valid AUC" in line)])
    end = " ".join(lines[next(n for n, line in enumerate(lines) if line.startswith("•")) :])
    for text in (" ".join(start.split()), " ".join(end.split())):  # before the training, and after
        assert "excel.csv is read with the separator semicolon" in text
        assert "with a decimal comma" in text and "dates, which count as the first" in text
    usual, unusual = (
        pyarrow.parquet.read_table(folder / "weights.parquet")["label"].to_pylist()
        for folder in (_usual(ratings, tmp_path), out)
    )
    assert usual == unusual
    page = (out / "report.html").read_text()
    assert "th&#34; &lt;i&gt;book&lt;/i&gt;" in page and "&lt;b&gt;" in page and "<b>" not in page


@pytest.mark.slow
def test_titles_that_cannot_be_read_do_not_cost_the_run(
    ratings: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items = tmp_path / "items.csv"
    items.write_text("item,category,title,Title\n1,a,b,c\n")  # which title?
    told = ("--data", ratings, *DOMAINS, *BRIEF, "--items", items, "--variants", "ours")
    assert run(*told, "--out", out) == 0
    assert (out / "report.html").exists()
    items.write_text("item,category,TITLE,Title\n1,a,b,c\n")
    assert run(*told, "--out", f"{out}2") == 0
    assert "the page shows ids, not titles: " in capsys.readouterr().err


def _usual(ratings: Path, folder: Path) -> Path:
    assert (
        run("--data", ratings, *DOMAINS, *BRIEF, "--variants", "ours", "--out", folder / "u") == 0
    )
    return folder / "u"


def test_a_run_ends_with_what_was_learned(
    ratings: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = ("--data", ratings, *DOMAINS, *BRIEF, "--variants", "base", "ours", "--seeds", 2)
    assert run(*told, "--outer.lr", "1e-9", "--out", out) == 0
    printed = " ".join(capsys.readouterr().out.split())
    learned = "CoNet+ours: nothing was learned, since the weights are all near 1"
    gain = "CoNet+ours: no gain is shown."
    page = html.unescape((out / "report.html").read_text())
    for text in (printed, page, (out / "table.md").read_text()):
        assert learned in text and gain in text
    assert printed.rindex("•") < printed.index(learned) < printed.index(gain)
    assert json.loads((out / "metrics.json").read_text())["conclusions"][0].startswith(learned)


def test_the_command_is_kept(finished: Path, ratings: Path) -> None:
    text = (finished / "command.txt").read_text()
    assert text.startswith(f"run_biao.py --data {ratings} --source books --target toys")
    environment = json.loads((finished / "environment.json").read_text())
    assert environment["packages"]["torch-reweight"]


def test_the_table_is_printed(
    ratings: Path, out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run("--data", ratings, *DOMAINS, *BRIEF, "--variants", "base", "ours", "--out", out) == 0
    told = capsys.readouterr()
    assert told.err == ""  # no bar where nobody watches
    lines = told.out.splitlines()
    assert lines[0] == "books → toys: 60 users"
    assert "CoNet+ours" in told.out and "CoNet-S" not in told.out
    assert lines[-1].endswith(f"everything is in {out}/")
    # Of 60 users one epoch learns nothing that 60 rows can show.
    assert sum("nothing was learned: AUC" in line for line in lines) == 2
    assert sum(line.startswith("CoNet") and line.endswith("at chance") for line in lines) == 2
    assert max(map(len, lines[:-1])) <= 80


@pytest.fixture
def small_g1(monkeypatch: pytest.MonkeyPatch) -> None:
    def generate(kind: str, **told: Any) -> Any:
        sizes = {"num_users": 60, "num_source_items": 200, "num_target_items": 100}
        return made(kind, **(sizes | told))

    made = generator.generate
    monkeypatch.setattr(generator, "generate", generate)
    cdr.runs.runner.clear_loaded()


def test_stacked_seeds_leave_the_same_behind(finished: Path, ratings: Path, out: Path) -> None:
    told = ("--seeds", 2, "--stack-seeds", "--out", out)
    assert run("--data", ratings, *DOMAINS, *BRIEF, *told) == 0
    assert set(os.listdir(out)) == set(os.listdir(finished))
    assert json.loads((out / "config.json").read_text())["stack_seeds"] is True
    stacked, alone = (json.loads((p / "metrics.json").read_text())["runs"] for p in (out, finished))
    assert list(stacked) == list(alone)
    for variant, runs in alone.items():
        for one, other in zip(runs, stacked[variant], strict=True):
            assert one["seed"] == other["seed"] and one["test"].keys() == other["test"].keys()
            # In float32; test_side_by_side.py says how close they are.
            assert one["test"]["log_loss"] == pytest.approx(other["test"]["log_loss"], abs=1e-5)


@pytest.mark.usefixtures("small_g1")
@pytest.mark.parametrize("name", ["g1", "g2"])
def test_generated_data_come_with_the_oracle(name: str, out: Path) -> None:
    assert run("--data", name, *BRIEF, "--seeds", 2, "--out", out) == 0
    config = json.loads((out / "config.json").read_text())
    assert config["variants"] == ["S", "0", "base", "ours", "oracle"]
    weights = pyarrow.parquet.read_table(out / "weights.parquet")
    for seed in (0, 1):
        data = Source(name, seeded=True).load(seed)
        part = weights.filter(pc.equal(weights["seed"], seed))
        assert part["relevant"].to_pylist() == data.relevant.tolist()
        assert part["item"].to_pylist() == data.source_items.ids[data.source.item].tolist()
    assert "Weight AUC" in (out / "table.md").read_text()


@pytest.mark.usefixtures("small_g1")
def test_variants_that_are_named_are_the_ones_that_run(out: Path) -> None:
    named = ("S", "0", "base", "ours")
    assert run(*BRIEF, "--variants", *named, "--out", out) == 0
    assert json.loads((out / "config.json").read_text())["variants"] == list(named)


@pytest.mark.parametrize("name", get_args(PresetName))
@pytest.mark.parametrize("form", ["--preset {}", "--preset={}", "--preset paper --preset {}"])
def test_a_preset_is_where_the_options_start(
    name: PresetName, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[RunBiao] = []
    monkeypatch.setattr(cdr.run_biao, "biao", lambda config, *told: seen.append(config) or 0)
    assert run(*form.format(name).split(), "--model.dim", "20") == 0
    expected = preset(name, "conet")
    assert seen[0].preset == name and seen[0].options.outer == expected.outer
    assert seen[0].options.model.dim == 20
    assert seen[0].options.model.hidden == expected.model.hidden


@pytest.mark.parametrize("form", ["--model {}", "--model={}", "--model dasl --model {}"])
@pytest.mark.parametrize(
    ("model", "flag", "name"),
    [
        ("conet", "--model.cross-layers", "cross_layers"),
        ("dasl", "--model.window", "window"),
        ("minet", "--model.rank", "rank"),
        ("twotower", "--model.dim", "dim"),
    ],
)
@pytest.mark.parametrize("start", get_args(PresetName))
def test_a_model_brings_its_own_options(
    start: PresetName,
    model: str,
    flag: str,
    name: str,
    form: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[RunBiao] = []
    monkeypatch.setattr(cdr.run_biao, "biao", lambda config, *told: seen.append(config) or 0)
    assert run(*form.format(model).split(), "--preset", start, flag, "4") == 0
    expected = preset(start, model)
    assert seen[0].model == model and seen[0].options.model_class is expected.model_class
    assert seen[0].options == replace(expected, model=replace(expected.model, **{name: 4}))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["dasl", "minet", "twotower"])
def test_each_model_leaves_the_same_behind(ratings: Path, out: Path, model: str) -> None:
    small = ("--model.dim", 2, "--perceptron.heads", 2, "--perceptron.history", 3)
    told = ("--model", model, *small, "--variants", "S", "search", "retrain", "split-0.1")
    assert run("--data", ratings, *DOMAINS, *BRIEF, *told, "--out", out) == 0
    config = json.loads((out / "config.json").read_text())
    assert config["model"] == model and config["options"]["model"]["dim"] == 2
    label = MODELS[model].label
    table = (out / "table.md").read_text()
    for row in ("-S", "+ours, search", "+ours retrained", "+ours split 0.1"):
        assert f"| {label}{row} |" in table
    runs = json.loads((out / "metrics.json").read_text())["runs"]
    assert list(runs) == ["S", "search", "retrain", "split-0.1"]
    assert all((out / f"model-{variant}-seed0.pt").exists() for variant in runs)


@pytest.mark.slow
def test_retrain_with_learned_weights_adds_both_trainings(ratings: Path, out: Path) -> None:
    told = ("--data", ratings, *DOMAINS, *BRIEF, "--retrain-with-learned-weights")
    assert run(*told, "--variants", "base", "ours", "--out", out) == 0
    config = json.loads((out / "config.json").read_text())
    assert config["variants"] == ["base", "ours", "search", "retrain"]
    weights = pyarrow.parquet.read_table(out / "weights.parquet").to_pydict()
    assert list(dict.fromkeys(weights["variant"])) == ["ours", "search"]
    half = len(weights["user"]) // 2
    assert weights["item"][:half] == weights["item"][half:]


# Bad input. Each ends with code 2 and words, and leaves nothing.


def refused(capsys: pytest.CaptureFixture[str], out: Path, words: str, *arguments: Any) -> None:
    assert run(*arguments, "--out", out) == 2
    told = capsys.readouterr().err
    plain = " ".join(told.replace("│", " ").split())  # the parser's errors come in a box
    assert re.search(words, plain), plain
    assert "Traceback" not in told
    assert not out.parent.exists()


def changed(ratings: Path, path: Path, **columns: Any) -> Path:
    """The ratings with columns set anew, or left out where None."""
    table = pyarrow.csv.read_csv(ratings)
    for name, values in columns.items():
        table = table.drop_columns(name)
        if values is not None:
            table = table.append_column(name, pyarrow.array(values))
    pyarrow.csv.write_csv(table, path)
    return path


def test_a_missing_file(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, out, "no file missing.csv", "--data", "missing.csv", *DOMAINS)


@pytest.mark.parametrize(
    ("variants", "words"),
    [
        (("base", "never"), "--variants never: there is no such variant"),
        (("base", "split-2"), "--variants split-2: there is no such variant"),
        (("base", "base"), "--variants base base: name at least one, and each once"),
        (("base", "retrain"), "--variants retrain: it takes the weights .* add search"),
    ],
)
def test_variants_that_cannot_be(
    ratings: Path,
    out: Path,
    capsys: pytest.CaptureFixture[str],
    variants: tuple[str, ...],
    words: str,
) -> None:
    refused(capsys, out, words, "--data", ratings, *DOMAINS, "--variants", *variants)


def test_an_independent_source_batch_for_conet(
    ratings: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = ("--data", ratings, *DOMAINS, "--inner.source-batch", "independent")
    refused(capsys, out, "--inner.source-batch independent: CoNet reads", *told)


def test_a_missing_column(
    ratings: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = changed(ratings, tmp_path / "r.csv", rating=None)
    refused(capsys, out, "no column 'rating'", "--data", path, *DOMAINS)


def test_ratings_that_are_no_numbers(
    ratings: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = pyarrow.csv.read_csv(ratings).num_rows
    path = changed(ratings, tmp_path / "r.csv", rating=["3"] * (rows - 1) + ["good"])
    refused(capsys, out, f"'good' in row {rows}", "--data", path, *DOMAINS)


def test_ratings_of_one_class(
    ratings: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = pyarrow.csv.read_csv(ratings).num_rows
    path = changed(ratings, tmp_path / "r.csv", rating=[5] * rows)
    refused(capsys, out, "ratings of the target are 5.*implicit", "--data", path, *DOMAINS)


def test_validation_behaviours_of_one_class(
    ratings: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pyarrow.csv.read_csv(ratings)
    toys = np.array(table["domain"].to_pylist()) == "toys"
    # Toys are liked, but for a time before all others.
    path = changed(
        ratings,
        tmp_path / "r.csv",
        rating=np.where(toys & (table["timestamp"].to_numpy() > 320), 5, 1 + 3 * ~toys),
    )
    words = "validation behaviours are positive"
    refused(capsys, out, words, "--data", path, *DOMAINS)


def test_an_unknown_domain(ratings: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    domains = ("--source", "books", "--target", "nope")
    refused(
        capsys,
        out,
        r"no domain 'nope'.*'books' \(690 rows\), 'toys' \(361 rows\)",
        "--data",
        ratings,
        *domains,
    )


def test_no_domain(ratings: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, out, "name two domains", "--data", ratings)


def test_a_log_without_domains_named_lists_them(
    ratings: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = r"--source and --target; there are 'books' \(690 rows\), 'toys' \(361 rows\)"
    refused(capsys, out, words, "--data", ratings)
    words = "no domain 'Toy' in .*; is 'toys' meant"
    refused(capsys, out, words, "--data", ratings, "--source", "books", "--target", "Toy")


def test_no_common_user(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = gappy_log()
    write_ratings(tmp_path / "r.csv", source, {**target, "user": target["user"] + 1000})
    words = "No user is in both domains"
    refused(capsys, out, words, "--data", tmp_path / "r.csv", *DOMAINS)


def test_tiny_users_only(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = gappy_log()
    first = np.unique(target["user"], return_index=True)[1]
    two = np.sort(np.concatenate([first, first + 1]))
    write_ratings(tmp_path / "r.csv", source, {k: v[two] for k, v in target.items()})
    words = "none of the 60 common users has three behaviours"
    refused(capsys, out, words, "--data", tmp_path / "r.csv", *DOMAINS)


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ("--root is missing.*amazon5/", "--data amazon5"),
        ("--root is missing.*epinions/", "--data epinions"),
        ("no file /nowhere/amazon5/interactions.csv.gz", "--data amazon5 --root /nowhere"),
        ("'nope' is unknown.*amazon5", "--data nope"),
        ("--items x.csv goes with a file", "--data g1 --items x.csv"),
        ("--items x.csv goes with a file", "--data g2 --items x.csv"),
        ("--separator ; goes with a file of ratings", "--data amazon5 --root x --separator ;"),
        ("--like-threshold 4.0 goes with .* --data recbole", "--like-threshold 4"),
        ("--like-threshold 0.0 goes with", "--data epinions --root x --like-threshold 0"),
        ("--items x.csv goes with a file", "--data amazon5 --root x --items x.csv"),
        ('"g1".*root', "--data g1 --root x"),
        ("--source-cut all goes with real data", "--source-cut all"),
        ("--source-cut all.*not with --data g2", "--data g2 --source-cut all"),
        ("--stack-seeds goes with one data set.*g1 is drawn anew", "--stack-seeds --seeds 2"),
        ("--device nonsense cannot be used", "--device nonsense"),
        ("--device meta cannot be used", "--device meta"),
        ("--seeds 0.*at least 1", "--seeds 0"),
        ("--jobs 0.*at least 1", "--jobs 0"),
        ("--variants.*at least one", "--variants"),
        ("--variants S S.*once", "--variants S S"),
        ("--outer.interval 0: it must be 1 or more", "--outer.interval 0"),
        ("--inner.batch-size 0: it must be 1 or more", "--inner.batch-size 0"),
        ("--inner.batch-size -5: it must be 1 or more", "--inner.batch-size -5"),
        ("--inner.epochs 0: it must be 1 or more", "--inner.epochs 0"),
        ("--model.dim 0: it must be 1 or more", "--model.dim 0"),
        ("--perceptron.heads 3: it must divide.*1, 2, 4, 5, 8", "--perceptron.heads 3"),
        ("--inner.lr -1.0: it must be a number above 0", "--inner.lr -1"),
        ("invalid choice|expected", "--model nope"),
        ("nope", "--nope 3"),
    ],
)
def test_bad_arguments(
    words: str, arguments: str, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, out, words, *arguments.split())


def test_no_oracle_for_real_data(
    ratings: Path, out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cdr.run_biao, "complete", untouched)
    arguments = ("--data", ratings, *DOMAINS, "--variants", "S", "oracle")
    refused(capsys, out, "--variants oracle.*--data g1", *arguments)


def untouched(*arguments: Any) -> None:
    pytest.fail("it went on")


@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.parametrize("arguments", ["--data g1", "--data missing.csv --source a --target b"])
def test_a_folder_that_exists_is_refused_before_anything_is_read(
    slash: str,
    arguments: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Source, "load", untouched)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "mine").write_text("x")
    assert run(*arguments.split(), "--out", f"{tmp_path}/old{slash}") == 2
    assert "old exists already and is left as it is" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["old"] and os.listdir(tmp_path / "old") == ["mine"]


def test_a_place_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Source, "load", untouched)
    (tmp_path / "file").write_text("x")
    assert run("--out", tmp_path / "file" / "one") == 2
    assert "no folder can be made there" in capsys.readouterr().err


def test_a_loss_that_is_not_finite(
    ratings: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for variant in ("base", "ours"):
        words = rf"training {variant} \(seed 0\).*Lower --inner.lr \(now 1e\+12\)"
        arguments = ("--inner.lr", "1e12", "--variants", variant, "--inner.epochs", 3)
        refused(capsys, out, words, "--data", ratings, *DOMAINS, *arguments)


def test_a_run_that_is_interrupted_before_its_first_training_leaves_nothing(
    ratings: Path, out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: Any, **told: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cdr.run_biao, "complete", interrupt)
    assert run("--data", ratings, *DOMAINS, *BRIEF, "--variants", "S", "--out", out) == 130
    assert "interrupted; there is nothing of this run to keep" in capsys.readouterr().err
    assert not out.parent.exists()


def test_no_outer_terms_is_fine(ratings: Path, out: Path) -> None:
    told = ("--outer.num-terms", 0, "--variants", "ours", "--out", out)
    assert run("--data", ratings, *DOMAINS, *BRIEF, *told) == 0


def test_help_fits_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run("--help") == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any("--inner.batch-size" in line for line in lines)


@pytest.mark.slow
def test_the_script_by_itself(ratings: Path, out: Path) -> None:
    def call(*arguments: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(SCRIPT), *map(str, arguments), "--out", str(out)]
        return subprocess.run(command, capture_output=True, text=True, cwd=ratings.parent)

    bad = call("--data", "missing.csv", *DOMAINS)
    assert (bad.returncode, bad.stdout, len(bad.stderr.splitlines())) == (2, "", 1)
    good = call("--data", ratings.name, *DOMAINS, *BRIEF, "--jobs", 2, "--variants", "S", "ours")
    assert (good.returncode, good.stderr) == (0, "")
    assert (out / "weights.parquet").exists()


@pytest.mark.parametrize("name", ["run_biao.py", "reproduce.py"])
def test_without_the_extra_one_sentence_says_what_to_install(name: str, tmp_path: Path) -> None:
    # -S leaves out site-packages, as in an interpreter without the extra.
    command = [sys.executable, "-S", str(SCRIPT.with_name(name))]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert ended.returncode != 0 and ended.stdout == ""
    (sentence,) = ended.stderr.splitlines()
    assert sentence.startswith(name) and "pip install -e '.[cdr]'" in sentence
