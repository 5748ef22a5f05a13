"""Finished trainings are found again, and only by what they are."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cdr.common.jsonable import to_json
from cdr.data import Harm
from cdr.runs import grid, runner
from cdr.runs.grid import Completed, Grid, complete, options_read
from cdr.runs.runner import Source, Task
from cdr.training.evaluation import Scores
from cdr.training.options import Options
from cdr.training.procedure import PLAIN
from cdr.training.result import Result

BRIEF = replace(
    Options(),
    inner=replace(Options().inner, epochs=1, batch_size=64),
    outer=replace(Options().outer, interval=2, batch_size=64),
    search=replace(Options().search, epochs=1),
)


@pytest.fixture
def source(ratings: Path) -> Source:
    return Source(str(ratings), (("source", "books"), ("target", "toys")))


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Task]:
    """The trainings that were really done."""
    done: list[Task] = []

    def run(tasks: list[Task], *arguments: Any, **told: Any) -> Iterator[tuple[Task, Any]]:
        for task, result in runner.run(tasks, *arguments, **told):
            done.append(task)
            yield task, result

    monkeypatch.setattr(grid, "run", run)
    return done


def tasks(source: Source, *variants: str, options: Options = BRIEF, seeds: int = 1) -> list[Task]:
    return [Task(v, seed, source, options, "cpu") for seed in range(seeds) for v in variants]


def completed(folder: Path, wanted: list[Task], jobs: int = 1, *, whole: bool = False) -> Completed:
    names = {task: f"{task.variant} seed {task.seed}" for task in wanted}
    grid = Grid(folder, "reproduce.py table1", whole=whole)
    return complete(grid, wanted, jobs, names, stack_seeds=False)


def test_each_harm_has_trainings_of_its_own(tmp_path: Path, source: Source) -> None:
    first = Harm("flip-items")
    harms = (first, Harm("flip-users"), replace(first, share=0.3), replace(first, seed=1))
    sources = [replace(source, options=(*source.options, ("harm", harm))) for harm in harms]
    again = replace(source, options=(*source.options, ("harm", replace(first))))
    keys = [Grid(tmp_path, "").key(*tasks(one, "base")) for one in (source, *sources, again)]
    assert len(set(keys)) == 5 and keys[1] == keys[-1]


def test_the_file_of_a_foreign_domain_is_part_of_the_key(tmp_path: Path) -> None:
    for place, domain in enumerate(("books", "music", "toys")):
        (tmp_path / domain).mkdir()
        rows = [f"{user}\t{user + n + place}\t{1 + n}\t{n}" for user in range(9) for n in range(5)]
        head = "user_id:token\titem_id:token\trating:float\ttimestamp:float"
        (tmp_path / domain / f"{domain}.inter").write_text("\n".join([head, *rows]) + "\n")
    given = (("root", tmp_path), ("source", "books"), ("target", "toys"))
    clean, harmed = (
        Source("recbole", options)
        for options in (given, (*given, ("harm", Harm("foreign-domain"))))
    )
    before = [Grid(tmp_path / "grid", "").key(*tasks(one, "base")) for one in (clean, harmed)]
    with (tmp_path / "music" / "music.inter").open("a") as file:
        file.write("1\t77\t5\t9\n")
    after = [Grid(tmp_path / "grid", "").key(*tasks(one, "base")) for one in (clean, harmed)]
    assert before[0] == after[0] and before[1] != after[1]


def test_a_collapse_that_was_kept_before_there_were_restarts_is_trained_again(
    tmp_path: Path, source: Source
) -> None:
    kept, (task,) = Grid(tmp_path, ""), tasks(source, "S")
    equal = Scores(np.full(6, 0.7, np.float32), np.arange(6) % 2, np.arange(6))
    history = [{"epoch": 1, "loss": 0.6, "auc": 0.5}]
    kept.store(task, Result(equal, None, history, {}, restarted=True))
    loaded = kept.load(task)
    assert loaded is not None and loaded.restarted
    (path,) = tmp_path.rglob("run.json")
    record = json.loads(path.read_text())
    del record["restarted"]
    path.write_text(json.dumps(record))
    assert kept.load(task) is None


def test_the_second_time_nothing_is_trained(
    tmp_path: Path, source: Source, trained: list[Task]
) -> None:
    wanted = tasks(source, "base", "ours")
    first = completed(tmp_path, wanted)
    assert trained == wanted and first.trained == 2
    second = completed(tmp_path, wanted)
    assert trained == wanted and second.trained == 0
    for task, run in first.runs.items():
        again = second.runs[task]
        assert (again.key, again.seconds) == (run.key, run.seconds)
        assert to_json(again.history) == to_json(run.history)
        assert again.history[0].keys() == run.history[0].keys()
        for one, other in zip(vars(run.test).values(), vars(again.test).values(), strict=True):
            assert one.dtype == other.dtype and np.array_equal(one, other)
        assert again.scores is again.test and again.valid_auc == run.history[0]["auc"]
    ours = second.runs[wanted[1]]
    assert ours.weights is not None and len(ours.weights) == len(source.load(0).source)
    assert second.runs[wanted[0]].weights is None


def test_what_a_training_leaves_behind(tmp_path: Path, source: Source) -> None:
    wanted = tasks(source, "S")
    run = completed(tmp_path, wanted).runs[wanted[0]]
    (path,) = tmp_path.glob("*/*/run.json")
    assert path.parent.name == run.key
    record = json.loads(path.read_text())
    assert (record["variant"], record["seed"], record["model"]) == ("S", 0, "conet")
    assert record["test"]["auc"] == run.test.metrics()["auc"]
    assert record["command"] == "reproduce.py table1" and record["environment"]["packages"]["torch"]
    assert record["seconds"] > 0
    # Content, not a place of this machine.
    assert set(record["data"]["content"]) == {"ratings.csv"}
    assert str(tmp_path) not in path.read_text()


def test_a_training_of_another_command_is_shared(
    tmp_path: Path, source: Source, trained: list[Task]
) -> None:
    completed(tmp_path, tasks(source, "base"))
    completed(tmp_path, tasks(source, "S", "base"))
    assert [task.variant for task in trained] == ["base", "S"]


def test_what_was_finished_survives_an_interruption(
    tmp_path: Path, source: Source, trained: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = tasks(source, "S", "0", "base")
    started = runner.train

    def train(variant: str, *arguments: Any, **told: Any) -> Result:
        if variant == "base":
            raise KeyboardInterrupt
        return started(variant, *arguments, **told)

    monkeypatch.setattr(runner, "train", train)
    with pytest.raises(KeyboardInterrupt):
        completed(tmp_path, wanted)
    monkeypatch.setattr(runner, "train", started)
    trained.clear()
    done = completed(tmp_path, wanted)
    assert [task.variant for task in trained] == ["base"] and len(done.runs) == 3


def test_a_training_that_was_interrupted_while_being_kept_is_done_again(
    tmp_path: Path, source: Source, trained: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = tasks(source, "S")

    def killed(*arguments: Any, **told: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(grid, "write_sealed", killed)
        with pytest.raises(KeyboardInterrupt):
            completed(tmp_path, wanted)
    assert not list(tmp_path.glob("??/*"))
    assert completed(tmp_path, wanted).trained == 1
    assert len(trained) == 2


@pytest.mark.parametrize("broken", ["run.json", "arrays.npz"])
def test_what_cannot_be_read_is_trained_again(
    tmp_path: Path, source: Source, trained: list[Task], broken: str
) -> None:
    wanted = tasks(source, "S")
    first = completed(tmp_path, wanted).runs[wanted[0]]
    (path,) = tmp_path.glob(f"*/*/{broken}")
    path.write_bytes(path.read_bytes()[:100])
    again = completed(tmp_path, wanted).runs[wanted[0]]
    assert len(trained) == 2
    assert np.array_equal(again.test.probability, first.test.probability)


def test_any_damage_is_trained_again(tmp_path: Path, source: Source, trained: list[Task]) -> None:
    wanted = tasks(source, "S")
    completed(tmp_path, wanted)

    def deflated() -> None:
        (path,) = tmp_path.glob("*/*/arrays.npz")
        content = bytearray(path.read_bytes())
        content[60:160] = b"\xff" * 100  # in the middle of the compressed numbers
        path.write_bytes(content)

    def incomplete() -> None:
        (path,) = tmp_path.glob("*/*/run.json")
        path.write_text("{}")

    def half() -> None:
        (path,) = tmp_path.glob("*/*/arrays.npz")
        path.unlink()

    for number, damage in enumerate((deflated, incomplete, half), 2):
        damage()
        completed(tmp_path, wanted)
        assert len(trained) == number, damage.__name__
        completed(tmp_path, wanted)
        assert len(trained) == number, "it was not kept anew"


def test_no_flipped_bit_gives_other_numbers(tmp_path: Path, source: Source) -> None:
    """Nor does any other change to the files of an entry."""
    kept, (task,) = Grid(tmp_path, ""), tasks(source, "S")
    scores = Scores(np.linspace(0.1, 0.9, 60, dtype=np.float32), np.arange(60) % 2, np.arange(60))
    result = Result(scores, None, [{"epoch": 1, "loss": 0.6, "auc": 0.5}], {})
    draws = np.random.default_rng(0)
    kept.store(task, result)
    (folder,) = tmp_path.glob("??/*")
    contents = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert contents.keys() == {"run.json", "arrays.npz", "sha256.json"}

    def damaged(name: str, content: bytes | None) -> bool:
        folder.mkdir(exist_ok=True)
        for other, good in contents.items():
            (folder / other).write_bytes(good)
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(content)
        told: list[str] = []
        found = kept.load(task, told.append)
        assert (found is None) == bool(told) == (not folder.exists())
        return found is None

    names = sorted(contents)
    for _ in range(300):
        name = names[draws.integers(len(names))]
        content = bytearray(contents[name])
        bit = int(draws.integers(8 * len(content)))
        content[bit // 8] ^= 1 << bit % 8
        assert damaged(name, bytes(content)), (name, bit)
    assert all(damaged(name, None) for name in names) and damaged("more", b"")
    assert not damaged("run.json", contents["run.json"])


def test_an_entry_from_before_there_were_checksums_is_taken(tmp_path: Path, source: Source) -> None:
    kept, (task,) = Grid(tmp_path, ""), tasks(source, "S")
    scores = Scores(np.linspace(0.1, 0.9, 6, dtype=np.float32), np.arange(6) % 2, np.arange(6))
    kept.store(task, Result(scores, None, [{"epoch": 1, "loss": 0.6, "auc": 0.5}], {}))
    (folder,) = tmp_path.glob("??/*")
    record = json.loads((folder / "run.json").read_text())
    del record["sealed"]
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "sha256.json").unlink()
    assert kept.load(task) is not None


def test_what_cannot_be_read_for_now_is_left_alone(
    tmp_path: Path, source: Source, trained: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = tasks(source, "S")
    completed(tmp_path, wanted)

    def refused(*arguments: Any, **told: Any) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(np, "load", refused)
        with pytest.raises(PermissionError):
            completed(tmp_path, wanted)
    assert completed(tmp_path, wanted).trained == 0 and len(trained) == 1


def test_a_cache_that_cannot_be_written_is_told_before_anything_is_trained(
    tmp_path: Path, source: Source, trained: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(OSError, match="--cache .*/file"):
        Grid(file, "").check_writable()

    def refused(*arguments: Any, **told: Any) -> None:
        raise OSError(30, "Read-only")

    wanted = tasks(source, "S")
    completed(tmp_path / "grid", wanted)
    monkeypatch.setattr(grid.tempfile, "TemporaryFile", refused)
    with pytest.raises(OSError, match="Read-only"):
        completed(tmp_path / "grid", tasks(source, "S", "base"))
    assert len(trained) == 1
    assert len(completed(tmp_path / "grid", wanted).runs) == 1  # what is there can be read


def test_a_failed_training_is_told_and_the_others_go_on(tmp_path: Path, source: Source) -> None:
    broken = replace(BRIEF, search=replace(BRIEF.search, inner_lr=1e12))
    wanted = [*tasks(source, "search", "retrain", options=broken), *tasks(source, "S")]
    done = completed(tmp_path, wanted)
    assert list(done.runs) == wanted[2:] and done.trained == 1
    assert "--search.inner-lr" in done.failures[wanted[0]]
    assert "takes the weights of" in done.failures[wanted[1]]
    # It is not kept, so that a mended cause is noticed.
    assert completed(tmp_path, wanted).failures.keys() == done.failures.keys()


def test_learned_weights_are_taken_from_the_grid(
    tmp_path: Path, source: Source, trained: list[Task]
) -> None:
    completed(tmp_path, tasks(source, "search"))
    completed(tmp_path, tasks(source, "search", "retrain"))
    assert [task.variant for task in trained] == ["search", "retrain"]


@pytest.mark.parametrize("whole", [False, True])
def test_cross_fitting_repeats_no_training_that_is_there(
    tmp_path: Path, source: Source, parts: list[str], whole: bool
) -> None:
    plain, (task,) = tasks(source, *PLAIN), tasks(source, "crossfit")
    alone = completed(tmp_path / "alone", [task], whole=whole).runs[task]
    assert sorted(parts) == sorted(PLAIN) and alone.kept in PLAIN
    completed(tmp_path, plain[:1], whole=whole)
    parts.clear()
    run = completed(tmp_path, [*plain, task], whole=whole).runs[task]
    assert sorted(parts) == sorted(PLAIN[1:])
    assert (run.key, run.kept, run.note) == (alone.key, alone.kept, alone.note)
    assert np.array_equal(run.test.probability, alone.test.probability)
    assert to_json(run.history) == to_json(alone.history)
    if whole:
        paths = (Grid(folder, "").model(task) for folder in (tmp_path, tmp_path / "alone"))
        model, other = (torch.load(path, weights_only=True)["model"] for path in paths)
        assert model.keys() == other.keys() and model
        assert all(torch.equal(model[name], other[name]) for name in model)


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_cross_fitting_takes_what_is_there(tmp_path: Path, source: Source, jobs: int) -> None:
    (task,), grid = tasks(source, "crossfit"), Grid(tmp_path, "reproduce.py table1")
    label, user = np.arange(40) % 2, np.arange(40) // 2
    for number, base in enumerate(tasks(source, *PLAIN), 1):
        # Of no training at all: they tell where what is kept comes from.
        scores = Scores(np.linspace(0.1, 0.9, 40, dtype=np.float32) ** number, label, user)
        history = [{"epoch": 1.0, "loss": 0.6, "auc": 0.99 + number / 1000}]
        grid.store(base, Result(scores, None, history, {}, valid=scores))
    run = completed(tmp_path, [task], jobs).runs[task]
    assert run.kept is not None
    taken = grid.load(replace(task, variant=run.kept))
    assert taken is not None and np.array_equal(run.test.probability, taken.test.probability)
    assert run.history == taken.history


def test_what_cross_fitting_cannot_take_is_trained_again(
    tmp_path: Path, source: Source, parts: list[str]
) -> None:
    plain, (crossfit,) = tasks(source, *PLAIN), tasks(source, "crossfit")
    grid = Grid(tmp_path, "")
    results = {task: result for task, result in runner.run(plain, 1, lambda text: None)}
    for task, result in results.items():
        # Kept before validation scores were.
        grid.store(task, replace(result, valid=None))
        assert grid.load(task) is not None and grid.result(task) is None
    damaged = next(tmp_path.glob("??/*/arrays.npz"))
    damaged.write_bytes(b"")
    parts.clear()
    completed(tmp_path, [crossfit])
    assert sorted(parts) == sorted(PLAIN)
    # It is for who asks for this training itself to tell of it.
    assert damaged.exists()


def test_the_key_is_of_all_that_decides(tmp_path: Path, source: Source) -> None:
    kept = Grid(tmp_path, "")
    task = tasks(source, "ours")[0]
    outer, perceptron = BRIEF.outer, BRIEF.perceptron
    other = [
        replace(task, variant="no-user"),
        replace(task, seed=1),
        replace(task, source=replace(source, options=(*source.options, ("source_cut", "all")))),
        replace(task, options=replace(BRIEF, outer=replace(outer, interval=3))),
        replace(task, options=replace(BRIEF, perceptron=replace(perceptron, history=3))),
        replace(task, options=replace(BRIEF, model=replace(BRIEF.model, dim=12))),
    ]
    keys = [kept.key(t) for t in (task, *other)]
    assert len(set(keys)) == len(keys)
    assert kept.key(replace(task, device="cuda")) == keys[0]


def test_options_that_a_variant_does_not_read_are_not_in_the_key(source: Source) -> None:
    changed = replace(
        BRIEF,
        inner=replace(BRIEF.inner, gamma=2.0),
        outer=replace(BRIEF.outer, interval=7),
        perceptron=replace(BRIEF.perceptron, history=3),
    )

    def same(variant: str, options: Options) -> bool:
        one, other = (tasks(source, variant, options=o)[0] for o in (BRIEF, options))
        return options_read(one) == options_read(other)

    assert all(same(variant, changed) for variant in ("S", "0", "oracle"))
    assert not same("base", changed) and not same("retrain", changed)
    assert same("base", replace(changed, inner=BRIEF.inner))
    assert same("group", replace(BRIEF, perceptron=changed.perceptron))
    assert same("ours", replace(BRIEF, inner=changed.inner))
    assert not same("ours", replace(BRIEF, outer=changed.outer))
    assert same("ours", replace(BRIEF, outer=replace(BRIEF.outer, split=0.2)))
    slower = replace(BRIEF, search=replace(BRIEF.search, lr=1e-4))
    assert same("ours", slower) and same("base", slower)
    assert not same("search", slower) and not same("retrain", slower)
    # A search has its own.
    assert same("retrain", replace(BRIEF, outer=replace(BRIEF.outer, lr=1.0, dev="in-order")))


def test_data_are_known_by_their_content(
    tmp_path: Path, ratings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key(path: Path) -> str:
        source = Source(str(path), (("source", "books"), ("target", "toys")))
        return Grid(tmp_path / "grid", "").key(tasks(source, "S")[0])

    read: list[Path] = []
    opened = Path.open

    def noted(path: Path, *arguments: Any, **told: Any) -> Any:
        read.append(path)
        return opened(path, *arguments, **told)

    monkeypatch.setattr(Path, "open", noted)
    here = tmp_path / "here" / "ratings.csv"
    here.parent.mkdir()
    here.write_bytes(ratings.read_bytes())
    first = key(here)
    elsewhere = tmp_path / "ratings.csv"
    here.rename(elsewhere)
    assert key(elsewhere) == first

    read.clear()
    assert key(elsewhere) == first
    assert elsewhere not in read
    elsewhere.write_bytes(ratings.read_bytes().replace(b"5", b"4", 1))
    os.utime(elsewhere, ns=(0, 0))
    assert key(elsewhere) != first


def test_rows_that_are_not_read_as_they_stand_are_in_the_key(tmp_path: Path, ratings: Path) -> None:
    def kept(path: Path) -> dict[str, Any]:
        source = Source(str(path), (("source", "books"), ("target", "toys")))
        runner.clear_loaded()
        return grid.Fingerprints(tmp_path / "grid").of(source)

    assert "repaired" not in kept(ratings)
    again = tmp_path / "ratings.csv"
    lines = ratings.read_text().splitlines()
    again.write_text("\n".join([*lines, lines[1], lines[-1]]))
    assert kept(again)["repaired"] == {"repeated lines": 2}
    # What cannot be loaded has a key as well, for its training to fail with a word on it.
    again.write_text("\n".join([lines[0], *(line for line in lines if "books" in line)]))
    assert "repaired" not in kept(again)


def test_missing_data_are_told(tmp_path: Path) -> None:
    for spec, words in (("log.csv", "There is no file"), ("epinions", "no .csv.gz files in")):
        options = (("root", tmp_path), ("source", "3"), ("target", "4"))
        with pytest.raises(FileNotFoundError, match=words):
            Grid(tmp_path, "").key(tasks(Source(spec, options), "S")[0])


def test_generated_data_are_known_by_a_sample(tmp_path: Path) -> None:
    one, two = (tasks(Source(spec, seeded=True), "S")[0] for spec in ("g1", "g2"))
    kept = Grid(tmp_path, "")
    assert kept.key(one) != kept.key(two)
    assert kept.key(one) == Grid(tmp_path, "").key(one)
