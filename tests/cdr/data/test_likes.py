"""Labels of ratings on other scales, and of none at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cdr.data import CrossDomainData, load

HEADER = "user,item,rating,timestamp,domain\n"


def scenario(
    folder: Path, source: list[float], target: list[float], **options: object
) -> CrossDomainData:
    """A user with these ratings in both domains."""
    ratings = [("books", rating) for rating in source] + [("toys", rating) for rating in target]
    rows = [f"u,i{n},{rating},{n},{domain}\n" for n, (domain, rating) in enumerate(ratings)]
    (folder / "log.csv").write_text(HEADER + "".join(rows))
    return load("log.csv", folder, "books", "toys", **options)


def labels(data: CrossDomainData) -> list[float]:
    parts = (data.source, data.train, data.valid, data.test)
    return np.concatenate([part.label.numpy() for part in parts]).tolist()


def scale_notes(data: CrossDomainData) -> list[str]:
    return [note for note in data.notes if "positive" in note and "Ratings" in note]


@pytest.mark.parametrize(
    ("ratings", "threshold"),
    [([1, 5, 7, 10], 6), ([0, 0, 1, 1], 0), ([-9.5, -1, 0.5, 8], -0.5), ([20, 40, 60, 80], 50)],
)
def test_a_threshold_makes_the_labels_of_any_scale(
    ratings: list[float], threshold: float, tmp_path: Path
) -> None:
    data = scenario(tmp_path, ratings, ratings, like_threshold=threshold)
    assert labels(data) == [0, 0, 1, 1] * 2
    (note,) = scale_notes(data)
    assert f"Ratings above {threshold:g} are positive (--like-threshold)" in note
    assert f"run from {min(ratings):g} to {max(ratings):g}, and 50% are positive" in note


def test_the_usual_scale_needs_no_words(tmp_path: Path) -> None:
    data = scenario(tmp_path, [0.5, 3, 3.5], [1, 2, 5])
    assert labels(data) == [0, 0, 1, 0, 0, 1] and scale_notes(data) == []


@pytest.mark.parametrize("domain", ["source", "target"])
def test_a_scale_on_which_three_means_little_is_noted(domain: str, tmp_path: Path) -> None:
    wide, usual = [1.0, 4, 7, 10], [1.0, 2, 4, 5]
    data = scenario(tmp_path, *((wide, usual) if domain == "source" else (usual, wide)))
    (note,) = scale_notes(data)
    assert f"those of the {domain} run from 1 to 10, and 75% are positive" in note
    assert "--like-threshold" in note


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        ([0, 1], [0, 1, 1], "2 ratings of the source run from 0 to 1, so that none"),
        ([0, 1], [1, 4, 5], "run from 0 to 1, so that none.*0 to 1 in the source and 1 to 5 in"),
        ([1, 5], [7, 9, 10], "of the target run from 7 to 10, so that all"),
        ([-0.5, 0.5], [1, 5, 5], "of the source run from -0.5 to 0.5, so that none"),
        ([1, 5], [1, 1, 1], "all 3 ratings of the target are 1, .*implicit feedback"),
        ([1, 1], [1, 5, 2], "all 2 ratings of the source are 1, .*implicit feedback"),
        ([5, 1], [5, 5, 5], "all 3 ratings of the target are 5, .*no negatives are drawn"),
    ],
)
def test_labels_of_one_class_are_refused_with_the_scale(
    source: list[float], target: list[float], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=words) as refused:
        scenario(tmp_path, source, target)
    assert "--like-threshold" in str(refused.value)


def test_the_threshold_that_is_proposed_is_one_that_works(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="with 0, 50% of the source's and 67% of the target's"):
        scenario(tmp_path, [0, 1], [0, 1, 1])
    assert labels(scenario(tmp_path, [0, 1], [0, 1, 1], like_threshold=0)) == [0, 1, 0, 1, 1]


def test_zeros_beside_ratings_are_noted(tmp_path: Path) -> None:
    (note,) = (n for n in scenario(tmp_path, [0, 5], [0, 1, 4, 5]).notes if "no rating" in n)
    assert note.startswith("2 ratings are 0 and count as negative")
    for data in (
        scenario(tmp_path, [0, 5], [0, 1, 4, 5], like_threshold=3),
        scenario(tmp_path, [-4, 5], [0, 1, 4, 5]),
    ):
        assert not any("no rating" in note for note in data.notes)


def test_a_source_without_negatives_is_noted(tmp_path: Path) -> None:
    data = scenario(tmp_path, [4, 5, 5], [1, 5, 2])
    assert any("All 3 ratings of the source are above 3" in note for note in data.notes)


@pytest.mark.parametrize("threshold", [float("nan"), float("inf")])
def test_a_threshold_is_a_finite_number(threshold: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="finite number"):
        scenario(tmp_path, [1, 5], [1, 5, 2], like_threshold=threshold)


def test_a_log_without_ratings_is_told_what_to_add(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user,item,timestamp,domain\nu,a,1,books\n")
    with pytest.raises(ValueError, match="no column 'rating'.*implicit.*--like-threshold 0"):
        load("log.csv", tmp_path, "books", "toys")


def test_atomic_files_have_a_threshold_too(tmp_path: Path) -> None:
    head = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    for name in ("books", "toys"):
        rows = [f"u\ti{n}\t{rating}\t{n}\n" for n, rating in enumerate((2, 6, 9, 10))]
        (tmp_path / f"{name}.inter").write_text(head + "".join(rows))
    data = load("recbole", tmp_path, "books", "toys", like_threshold=8)
    assert data.train.label.tolist() == [0, 0] and len(scale_notes(data)) == 1
    with pytest.raises(ValueError, match="of the source run from 2 to 10, so that none"):
        load("recbole", tmp_path, "books", "toys", like_threshold=10)
