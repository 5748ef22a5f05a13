"""A known harm: what it changes, what it leaves, and histories that show the log after it."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
import torch
from scenarios import gappy_log

from cdr.data import CrossDomainData, Harm, HarmKind, Interactions, audit, build, generate, load
from cdr.data.harm import harmed
from cdr.data.new_source import with_source

KINDS = get_args(HarmKind)


def tensors(value: Any, name: str = "") -> dict[str, np.ndarray]:
    """All tensors of a scenario by dotted name."""
    if isinstance(value, torch.Tensor):
        return {name: value.numpy()}
    if not is_dataclass(value):
        return {}
    parts = (tensors(getattr(value, f.name), f"{name}.{f.name}") for f in fields(value))
    return {key: array for part in parts for key, array in part.items()}


def assert_equal(one: CrossDomainData, other: CrossDomainData) -> None:
    left, right = tensors(one), tensors(other)
    assert left.keys() == right.keys()
    for key, array in left.items():
        np.testing.assert_array_equal(array, right[key], key)


def interactions(log: dict[str, np.ndarray], liked: np.ndarray) -> Interactions:
    time = log["timestamp"].astype(float)
    return Interactions(log["user"], log["item"], liked, np.where(time % 7 == 0, np.nan, time))


@pytest.fixture(scope="module")
def timeless() -> CrossDomainData:
    """A log in which a seventh of the times is unknown."""
    return build("timeless", *(interactions(log, log["rating"] > 3) for log in gappy_log()))


@pytest.fixture(scope="module")
def three_domains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of ratings with the domains books, music and toys."""
    path = tmp_path_factory.mktemp("harm") / "three.csv"
    logs = (*gappy_log(), gappy_log(1)[0])
    parts = [
        pa.table({**log, "domain": np.full(len(log["user"]), name)})
        for name, log in zip(("books", "toys", "music"), logs, strict=True)
    ]
    pyarrow.csv.write_csv(pa.concat_tables(parts), path)
    return path


@pytest.mark.parametrize("name", ["gappy", "timeless", "tiny"])
def test_histories_made_anew_of_the_same_behaviours_are_those_of_the_split(
    name: str, request: pytest.FixtureRequest
) -> None:
    data: CrossDomainData = request.getfixturevalue(name)
    item, label = data.source.item.numpy(), data.source.label.numpy() > 0.5
    flags = np.ones(len(item), dtype=bool) if data.relevant is None else data.relevant.numpy()
    again = with_source(data, item, label, data.source_items, flags)
    assert again.statistics == data.statistics
    left, right = tensors(again), tensors(data)
    for key, array in right.items():
        np.testing.assert_array_equal(array, left[key], key)


@pytest.mark.parametrize("kind", ["flip-items", "flip-users"])
def test_flipped_labels_give_the_scenario_of_a_log_that_was_flipped(
    timeless: CrossDomainData, kind: HarmKind
) -> None:
    after = harmed(timeless, Harm(kind))
    source, target = gappy_log()
    of = "item" if kind == "flip-items" else "user"
    known = timeless.source_items.ids if of == "item" else timeless.user_ids
    chosen = known[getattr(after.source, of)[~after.relevant].unique().numpy()]
    liked = (source["rating"] > 3) ^ np.isin(source[of], chosen)
    expected = build(
        "after", interactions(source, liked), interactions(target, target["rating"] > 3)
    )
    for key, array in tensors(expected).items():
        np.testing.assert_array_equal(array, tensors(after)[key], key)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["gappy", "timeless", "tiny"])
def test_a_harm_keeps_users_times_and_target_and_leaks_nothing(
    name: str, kind: HarmKind, request: pytest.FixtureRequest
) -> None:
    data: CrossDomainData = request.getfixturevalue(name)
    after = harmed(data, Harm(kind))
    audit(after)
    assert torch.equal(after.source.user, data.source.user)
    for part in ("train", "valid", "test"):
        for column in ("user", "item", "label", "target_past"):
            ours, theirs = (getattr(getattr(d, part), column) for d in (after, data))
            assert torch.equal(ours, theirs)
    changed = (after.source.item != data.source.item) | (after.source.label != data.source.label)
    assert changed[~after.relevant].any()
    if kind != "permute-users":  # there, a user may get an own behaviour at another time
        assert not after.relevant[changed].any()
    assert after.statistics["harmed"] > 0 and after.name == f"{data.name}, {kind} 0.4"
    assert after.notes[1:] == data.notes and kind in after.notes[0]


def test_a_share_of_those_with_source_behaviours_is_harmed(gappy: CrossDomainData) -> None:
    for kind, column in (("flip-items", "item"), ("flip-users", "user")):
        after = harmed(gappy, Harm(kind, 0.25))
        of = getattr(gappy.source, column)
        hit, all_ = of[~after.relevant].unique(), of.unique()
        assert len(hit) == round(0.25 * len(all_))
        # All behaviours of each, not some.
        assert torch.equal(torch.isin(of, hit), ~after.relevant)


def test_a_permutation_within_the_category_changes_no_count_of_items_and_labels() -> None:
    data = generate(num_users=60, num_source_items=200, num_target_items=100, seed=3)
    after = harmed(data, Harm("permute-users"))
    category = data.source_items.category
    told = [
        torch.stack([category[d.source.item], d.source.item, d.source.label.long()], 1)
        for d in (data, after)
    ]
    # Row by row the category stays; over all rows, each pair of item and label.
    assert torch.equal(told[0][:, 0], told[1][:, 0])
    assert [*map(tuple, told[0].tolist())] != [*map(tuple, told[1].tolist())]
    assert sorted(told[0].tolist()) == sorted(told[1].tolist())
    changed = (told[0] != told[1]).any(1)
    assert len(data.source.user[changed].unique()) <= round(0.4 * 60)


def test_flags_of_a_generator_stay_false_where_they_were(tiny: CrossDomainData) -> None:
    after = harmed(tiny, Harm("flip-items"))
    assert not after.relevant[~tiny.relevant].any()
    assert after.relevant.sum() < tiny.relevant.sum()


def test_another_domain_of_the_file_takes_the_place_of_some_users_behaviours(
    three_domains: Path,
) -> None:
    clean = load(str(three_domains), source="books", target="toys")
    after = load(
        str(three_domains), source="books", target="toys", harm=Harm("foreign-domain", 0.5)
    )
    audit(after)
    assert "the domain music" in after.notes[0]
    ids = after.source_items.ids[after.source.item.numpy()]
    foreign = np.array([str(one).startswith("music/") for one in ids])
    np.testing.assert_array_equal(foreign, ~after.relevant.numpy())
    assert len(np.unique(after.source.user.numpy()[foreign])) == round(
        0.5 * len(clean.source.user.unique())
    )
    kept = clean.source_items.ids[clean.source.item.numpy()]
    np.testing.assert_array_equal(ids[~foreign], kept[~foreign])
    assert torch.equal(after.source.label[~foreign], clean.source.label[~foreign])
    assert list(after.source_items.ids) == sorted(after.source_items.ids)
    names = np.array(after.source_items.category_names)[
        after.source_items.category[after.source.item].numpy()
    ]
    assert set(names[foreign]) == {"music/others"} and set(names[~foreign]) == {"others"}
    # What the music log has of an item is what the behaviour shows.
    music = gappy_log(1)[0]
    pairs = {*zip(music["item"].tolist(), (music["rating"] > 3).tolist(), strict=True)}
    shown = zip(ids[foreign], after.source.label[foreign].bool().tolist(), strict=True)
    assert all((int(one.split("/")[1]), liked) in pairs for one, liked in shown)


def test_without_another_domain_behaviours_come_from_other_users(ratings: Path) -> None:
    data = load(str(ratings), source="books", target="toys")
    after = load(str(ratings), source="books", target="toys", harm=Harm("foreign-domain"))
    assert "other users" in after.notes[0] and "no other domain" in after.notes[0]
    user, item, label = (getattr(data.source, c).tolist() for c in ("user", "item", "label"))
    rows = [*zip(user, item, label, strict=True)]
    for row in (~after.relevant).nonzero().flatten().tolist():
        now = int(after.source.item[row]), float(after.source.label[row])
        assert any((i, y) == now for u, i, y in rows if u != user[row])


def test_equal_seeds_harm_equally_and_others_do_not(gappy: CrossDomainData) -> None:
    for kind in KINDS:
        first, again = (harmed(gappy, Harm(kind, seed=3)) for _ in range(2))
        assert_equal(first, again)
        assert not torch.equal(first.relevant, harmed(gappy, Harm(kind, seed=4)).relevant)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"kind": "flip"}, "--harm flip"),
        ({"kind": "flip-items", "share": 1.0}, "--harm-share 1"),
        ({"kind": "flip-items", "share": 0.0}, "--harm-share 0"),
        ({"kind": "flip-items", "seed": -1}, "--harm-seed -1"),
    ],
)
def test_a_harm_out_of_range_is_refused(given: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Harm(**given)


def test_a_share_that_harms_nobody_is_refused(gappy: CrossDomainData) -> None:
    with pytest.raises(ValueError, match=r"--harm-share 0\.001: 0 of"):
        harmed(gappy, Harm("flip-users", 0.001))
