"""The split by time: a small log worked out by hand, and a leak audit over random logs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cdr.data import Behaviors, CrossDomainData, Histories, Interactions, audit, build

NAN = float("nan")


def log(*rows: tuple, order: bool = False, category: bool = False) -> Interactions:
    """Interactions from rows (user, item, label, time[, order or category])."""
    user, item, label, time, *rest = zip(*rows, strict=True)
    return Interactions(
        np.array(user),
        np.array(item),
        np.array(label, dtype=bool),
        np.array(time, dtype=float),
        order=np.array(rest[0]) if order else None,
        category=np.array(rest[0], dtype=object) if category else None,
    )


# Target: ann has five behaviours (times 1 2 2 4 9, the tie at 2 in file order), bob three, cat two,
# dan one; eve is not in the source.
TARGET = log(
    ("ann", "t4", 1, 4),
    ("ann", "t2", 1, 2),
    ("bob", "t1", 0, 10),
    ("ann", "t3", 0, 2),
    ("cat", "t5", 1, 7),
    ("ann", "t1", 1, 1),
    ("bob", "t2", 1, 20),
    ("bob", "t6", 1, 30),
    ("dan", "t1", 1, 5),
    ("cat", "t2", 0, 6),
    ("eve", "t9", 1, 1),
    ("ann", "t5", 0, 9),
)
# Source: cuts are 4 (ann), 20 (bob), 6 (cat) and 5 (dan), strict.
SOURCE = log(
    ("ann", "s3", 1, 3),
    ("ann", "s1", 1, 1),
    ("ann", "s2", 0, 2),
    ("ann", "s4", 1, 4),  # at the cut
    ("ann", "s5", 1, 2),  # ties with s2, which comes first in the file
    ("bob", "s1", 1, 9),
    ("bob", "s6", 1, 21),  # after the cut
    ("cat", "s2", 1, 5),
    ("cat", "s7", 1, 6),  # at the cut
    ("dan", "s1", 1, 4),
    ("dan", "s8", 1, 5),  # at the cut
    ("fay", "s9", 1, 0),  # not in the target
)


def named(data, part: str) -> list[tuple[str, str, int]]:
    """A split as (user, item, label) with the original ids."""
    rows = getattr(data, part)
    items = data.source_items if part == "source" else data.target_items
    ids = data.user_ids[rows.user.numpy()].tolist(), items.ids[rows.item.numpy()].tolist()
    return list(zip(*ids, rows.label.int().tolist(), strict=True))


def histories(data) -> tuple[list[list[str]], list[list[str]]]:
    """Source and target history of every source row, with the original ids, oldest first."""
    shown = []
    for slots, items in (
        (data.source_history, data.source_items),
        (data.target_history, data.target_items),
    ):
        index, mask = slots.gather(torch.arange(len(data.source)), 10)
        shown.append(
            [items.ids[i[m]].tolist() for i, m in zip(index.numpy(), mask.numpy(), strict=True)]
        )
    return shown[0], shown[1]


def test_split_of_the_small_log() -> None:
    data = build("small", SOURCE, TARGET)
    assert data.user_ids.tolist() == ["ann", "bob", "cat", "dan"]
    assert named(data, "train") == [
        ("ann", "t1", 1),
        ("ann", "t2", 1),
        ("ann", "t3", 0),
        ("bob", "t1", 0),
    ]
    assert named(data, "valid") == [("ann", "t4", 1), ("bob", "t2", 1), ("cat", "t2", 0)]
    assert named(data, "test") == [
        ("ann", "t5", 0),
        ("bob", "t6", 1),
        ("cat", "t5", 1),
        ("dan", "t1", 1),
    ]
    assert named(data, "source") == [
        ("ann", "s1", 1),
        ("ann", "s2", 0),
        ("ann", "s5", 1),
        ("ann", "s3", 1),
        ("bob", "s1", 1),
        ("cat", "s2", 1),
        ("dan", "s1", 1),
    ]
    assert data.source_offsets.tolist() == [0, 4, 5, 6, 7]
    audit(data)


def test_histories_of_the_small_log() -> None:
    source, target = histories(build("small", SOURCE, TARGET))
    assert source == [[], ["s1"], ["s1"], ["s1", "s5"], [], [], []]
    # Up to and including the candidate's time; t3 is negative, t4 and t5 are not of training.
    assert target == [["t1"], ["t1", "t2"], ["t1", "t2"], ["t1", "t2"], [], [], []]


def test_statistics_and_notes_count_short_users() -> None:
    data = build("small", SOURCE, TARGET)
    expected = {
        "users": 4,
        "source": 11,
        "target": 11,
        "source_items": 8,
        "target_items": 6,
        "source_train": 7,
        "train": 4,
        "valid": 3,
        "test": 4,
        "short_users": 2,
        "users_with_two": 1,
        "users_with_one": 1,
        "users_without_source": 0,
    }
    assert {key: data.statistics[key] for key in expected} == expected
    (note,) = data.notes
    assert "2 of 4 users have too few target behaviours" in note


def test_items_are_those_of_the_common_users_before_the_cut() -> None:
    data = build("small", SOURCE, TARGET)
    assert data.source_items.ids.tolist() == ["s1", "s2", "s3", "s4", "s5", "s6", "s7", "s8"]
    assert data.target_items.ids.tolist() == ["t1", "t2", "t3", "t4", "t5", "t6"]
    assert data.source_items.category_names == ("others",)


def test_categories_follow_their_items() -> None:
    source = log(("u", "b", 1, 0, "y"), ("u", "a", 1, 1, "x"), ("u", "c", 1, 2, "y"), category=True)
    target = log(("u", "t", 1, 5), ("u", "t", 1, 6), ("u", "t", 1, 7))
    items = build("x", source, target).source_items
    assert items.category_names == ("x", "y") and items.num_categories == 2
    assert items.category.tolist() == [0, 1, 1]  # of a, b, c


def test_order_breaks_ties_in_time() -> None:
    target = log(("u", "c", 1, 1, 2), ("u", "a", 1, 1, 0), ("u", "b", 1, 1, 1), order=True)
    data = build("x", log(("u", "s", 1, 0)), target)
    assert named(data, "train") == [("u", "a", 1)]
    assert named(data, "test") == [("u", "c", 1)]


def test_cut_all_keeps_every_source_behaviour_and_says_so() -> None:
    data = build("small", SOURCE, TARGET, source_cut="all")
    assert data.statistics["source_train"] == len(data.source) == 11
    assert data.source_cut == "all" and "All 11 source behaviours are kept" in data.notes[0]
    # The target history of s6 (time 21) still shows nothing of validation (t2, time 20).
    source, target = histories(data)
    assert target[named(data, "source").index(("bob", "s6", 1))] == []
    audit(data)


def test_unknown_time_of_the_validation_is_bounded_by_an_earlier_one() -> None:
    target = log(*[("u", f"t{i}", 1, t, i) for i, t in enumerate([3, 5, NAN, NAN])], order=True)
    source = log(*[("u", f"s{t}", 1, t) for t in (2, 4, 5, 6)])
    data = build("x", source, target)
    assert named(data, "valid") == [("u", "t2", 1)] and named(data, "test") == [("u", "t3", 1)]
    assert named(data, "source") == [("u", "s2", 1), ("u", "s4", 1)]  # before 5
    assert data.statistics["bounded_users"] == 1
    assert "2 of 4 source behaviours are left" in data.notes[0]
    audit(data)


def test_bound_never_uses_the_time_of_the_test() -> None:
    target = log(*[("u", f"t{i}", 1, t, i) for i, t in enumerate([3, NAN, 9])], order=True)
    data = build("x", log(("u", "a", 1, 2), ("u", "b", 1, 4)), target)
    assert named(data, "source") == [("u", "a", 1)]


def test_source_without_times_is_kept_whole_and_noted() -> None:
    source = Interactions(np.array(["u", "u"]), np.array(["a", "b"]), np.array([True, True]))
    target = log(*[("u", f"t{t}", 1, t) for t in (1, 2, 3, 4)])
    data = build("x", source, target)
    assert data.source_cut == "all" and len(data.source) == 2
    assert data.notes[0].startswith("The source has no times")
    assert histories(data) == ([[], ["a"]], [["t1", "t2"], ["t1", "t2"]])
    audit(data)


def test_source_row_of_unknown_time_behind_a_cut_one_is_cut() -> None:
    source = log(*[("u", f"s{i}", 1, t, i) for i, t in enumerate([1, NAN, 9, NAN])], order=True)
    target = log(*[("u", f"t{t}", 1, t) for t in (2, 3, 4)])
    data = build("x", source, target)
    assert named(data, "source") == [("u", "s0", 1), ("u", "s1", 1)]
    assert data.statistics["source_uncut"] == 1


def test_extra_test_enters_nothing_else() -> None:
    extra = log(("ann", "t7", 1, 0), ("zoe", "t8", 1, 0), ("bob", "t1", 0, 0))
    data = build("small", SOURCE, TARGET, extra_test=extra)
    plain = build("small", SOURCE, TARGET)
    assert named(data, "extra_test") == [("ann", "t7", 1), ("bob", "t1", 0)]
    assert all(
        named(data, part) == named(plain, part) for part in ("source", "train", "valid", "test")
    )
    assert histories(data) == histories(plain)


def test_gather_is_the_most_recent_oldest_first_and_masks_the_candidate() -> None:
    flat = torch.tensor([5, 6, 5, 8])
    slots = Histories(flat, torch.tensor([0, 0, 4]), torch.tensor([2, 4, 4]), torch.arange(4))
    items, mask = slots.gather(torch.tensor([1, 0, 2]), 3)
    assert items.tolist() == [[6, 5, 8], [5, 6, 0], [0, 0, 0]]
    assert mask.tolist() == [[True] * 3, [True, True, False], [False] * 3]
    items, mask = slots.gather(torch.tensor([1]), 3, exclude=torch.tensor([5]))
    assert items.tolist() == [[6, 0, 8]] and mask.tolist() == [[True, False, True]]


def test_gather_of_no_positives_at_all_is_masked() -> None:
    none = torch.zeros(0, dtype=torch.long)
    items, mask = Histories(none, torch.zeros(2).long(), torch.zeros(2).long(), none).gather(
        torch.tensor([0, 1]), 2
    )
    assert items.tolist() == [[0, 0], [0, 0]] and not mask.any()


def test_to_moves_every_tensor_but_the_times() -> None:
    data = build("small", SOURCE, TARGET).to("meta")
    assert data.source.item.device.type == data.target_history.items.device.type == "meta"
    assert data.target_items.category.device.type == "meta"
    assert data.times.source.device.type == "cpu"


# Random logs. The user "anchor" makes sure that something is left to train on.
TIMES = st.one_of(st.integers(0, 6), st.just(NAN))


def logs(prefix: str) -> st.SearchStrategy[Interactions]:
    row = st.tuples(
        st.sampled_from(["a", "b", "c"]), st.sampled_from("uvwxyz"), st.booleans(), TIMES
    )
    anchor = [("anchor", "u", True, float(t)) for t in (0, 1, 2)]

    def assemble(rows: list[tuple], ordered: bool) -> Interactions:
        rows = anchor + [(user, prefix + item, label, float(t)) for user, item, label, t in rows]
        if not ordered:
            return log(*rows)
        # An order as honest data have it: it never contradicts the times.
        rank = [(i, t) for i, (*_, t) in enumerate(rows)]
        known = sorted((i for i, t in rank if t == t), key=lambda i: rows[i][3])
        places = iter(known)
        sequence = [next(places) if t == t else i for i, t in rank]
        order = {row: place for place, row in enumerate(sequence)}
        return log(*[(*row, order[i]) for i, row in enumerate(rows)], order=True)

    return st.builds(assemble, st.lists(row, min_size=1, max_size=25), st.booleans())


@given(logs("s"), logs("t"), st.sampled_from(["time", "all"]))
def test_no_history_leaks_over_random_logs(
    source: Interactions, target: Interactions, source_cut: str
) -> None:
    data = build("random", source, target, source_cut=source_cut)
    audit(data)
    times = data.times
    of_user = [
        torch.nonzero(data.train.user == u).flatten().tolist() for u in range(data.num_users)
    ]
    for row in range(len(data.source)):
        user, now = int(data.source.user[row]), float(times.source[row])
        seen = range(data.source_history.start[row], data.source_history.end[row])
        origin = data.source_history.origin[seen.start : seen.stop].tolist()
        # Every earlier positive of the user and nothing else, the candidate itself left out.
        assert origin == [
            r for r in range(row) if data.source.user[r] == user and data.source.label[r] == 1
        ]
        assert not any(float(times.source[r]) > now for r in origin)
        slots = data.target_history
        origin = slots.origin[slots.start[row] : slots.end[row]].tolist()
        assert set(origin) <= set(of_user[user])  # of the user, and rows of training
        if now == now:
            assert origin == [
                r
                for r in of_user[user]
                if data.train.label[r] == 1 and float(times.train[r]) <= now
            ]
        if source_cut == "time" and now == now:
            known = [
                float(times.valid[r]) for r in torch.nonzero(data.valid.user == user).flatten()
            ]
            assert not any(now >= t for t in known)
            assert not now >= float(times.test[user]) or known


def brute_force(data: CrossDomainData, part: str, row: int) -> tuple[list[int], list[int]]:
    """Source and training rows that a target row may see: positives of its user, in order."""
    rows: Behaviors = getattr(data, part)
    user, now = int(rows.user[row]), known_time(data, part, row)
    source = [
        r
        for r in range(len(data.source))
        if data.source.user[r] == user
        and data.source.label[r] == 1
        # As known: an unknown time is that of the user's behaviour before it.
        and known_time(data, "source", r) <= now
    ]
    target = [
        r
        for r in range(len(data.train))
        if data.train.user[r] == user
        and data.train.label[r] == 1
        and (part != "train" or r < row)
        and not data.times.train[r].isnan()
    ]
    return source, target


def known_time(data: CrossDomainData, part: str, row: int) -> float:
    """The time of a row, or the last known one of its user before it, or -inf."""
    parts = ("source",) if part == "source" else ("train", "valid", "test")
    earlier = []
    for each in parts:
        users, times = getattr(data, each).user, getattr(data.times, each)
        of_user = torch.nonzero(users == getattr(data, part).user[row]).flatten().tolist()
        if each == part:
            of_user = [r for r in of_user if r <= row]
        earlier += [float(times[r]) for r in of_user if not times[r].isnan()]
        if each == part:
            break
    return earlier[-1] if earlier else -math.inf


@given(logs("s"), logs("t"), st.sampled_from(["time", "all"]))
def test_no_past_leaks_over_random_logs(
    source: Interactions, target: Interactions, source_cut: str
) -> None:
    data = build("random", source, target, source_cut=source_cut)
    audit(data)
    for part in ("train", "valid", "test"):
        rows: Behaviors = getattr(data, part)
        for row in range(len(rows)):
            found = []
            for span, lists in (
                (rows.source_past, data.source_history),
                (rows.target_past, data.target_history),
            ):
                first, end = span[row].tolist()
                found.append(lists.origin[first:end].tolist())
            assert tuple(found) == brute_force(data, part, row)
            now = float(getattr(data.times, part)[row])
            if now == now:  # not a behaviour that is known to come later
                assert not any(float(data.times.source[r]) > now for r in found[0])
                assert not any(float(data.times.train[r]) > now for r in found[1])


def pasts(data: CrossDomainData, part: str) -> list[tuple[list[str], list[str]]]:
    """Source and target items that each row of a split shows, with the original ids."""
    rows: Behaviors = getattr(data, part)
    shown = []
    for source, target in zip(rows.source_past.tolist(), rows.target_past.tolist(), strict=True):
        items = data.source_history.items[slice(*source)], data.target_history.items[slice(*target)]
        ids = data.source_items.ids[items[0].numpy()], data.target_items.ids[items[1].numpy()]
        shown.append((ids[0].tolist(), ids[1].tolist()))
    return shown


def test_pasts_of_the_small_log() -> None:
    extra = log(("ann", "t7", 1, 0), ("bob", "t1", 0, 0))
    data = build("small", SOURCE, TARGET, extra_test=extra)
    # Source positives up to and including the candidate's time; s2 and t3 are negative.
    assert pasts(data, "train") == [
        (["s1"], []),
        (["s1", "s5"], ["t1"]),
        (["s1", "s5"], ["t1", "t2"]),  # ties with t2, which comes first in the file
        (["s1"], []),
    ]
    everything = ["s1", "s5", "s3"]
    assert pasts(data, "valid") == [(everything, ["t1", "t2"]), (["s1"], []), (["s2"], [])]
    # Not t4, which is ann's validation behaviour.
    assert pasts(data, "test")[:2] == [(everything, ["t1", "t2"]), (["s1"], [])]
    assert pasts(data, "extra_test") == [(everything, ["t1", "t2"]), (["s1"], [])]
    assert data.source.source_past is None and data.source.target_past is None
    audit(data)


def test_pasts_without_times_hold_all_but_what_comes_later_in_training() -> None:
    source = Interactions(np.array(["u", "u"]), np.array(["a", "b"]), np.array([True, True]))
    data = build("x", source, log(*[("u", f"t{t}", 1, t) for t in (1, 2, 3, 4)]))
    assert pasts(data, "train") == [(["a", "b"], []), (["a", "b"], ["t1"])]
    assert pasts(data, "test") == [(["a", "b"], ["t1", "t2"])]


@given(logs("s"), logs("t"))
def test_every_target_behaviour_of_a_common_user_is_in_one_split(
    source: Interactions, target: Interactions
) -> None:
    data = build("random", source, target, source_cut="all")
    common = set(source.user) & set(target.user)
    rows = zip(target.user, target.item, target.label.astype(int), strict=True)
    expected = sorted((u, i, int(y)) for u, i, y in rows if u in common)
    assert sorted(sum((named(data, p) for p in ("train", "valid", "test")), [])) == expected
    assert data.test.user.tolist() == list(range(len(common)))


LEAKS = {
    "source_history holds the candidate": lambda d: replace(
        d, source_history=replace(d.source_history, end=d.source_history.end + 1)
    ),
    "shows another item": lambda d: replace(
        d, target_history=replace(d.target_history, items=d.target_history.items + 1)
    ),
    "source_history holds another user's behaviour": lambda d: replace(
        d,
        source_history=replace(d.source_history, end=(d.source_history.end + 2).clamp(max=6)),
    ),
    "source_history begins with another user's": lambda d: replace(
        d,
        source_history=replace(d.source_history, start=torch.zeros_like(d.source_history.start)),
    ),
    "target_history holds a behaviour later than the candidate": lambda d: replace(
        d, times=replace(d.times, train=d.times.train + 1)
    ),
    "not one of training": lambda d: replace(
        d, target_history=replace(d.target_history, origin=d.target_history.origin + len(d.train))
    ),
    "holds a negative behaviour": lambda d: replace(
        d, train=replace(d.train, label=torch.zeros_like(d.train.label))
    ),
    "is not earlier than the cut": lambda d: replace(
        d, times=replace(d.times, source=d.times.source + 1)
    ),
    "a training behaviour is later than the validation": lambda d: replace(
        d, times=replace(d.times, valid=d.times.valid - 5)
    ),
    "the validation behaviour is later than the test": lambda d: replace(
        d, times=replace(d.times, test=d.times.test - 5)
    ),
}


Corruption = Callable[[CrossDomainData], CrossDomainData]


def in_past(part: str, column: str, row: int, span: tuple[int, int]) -> Corruption:
    """The data with one slice of a past set anew."""

    def corrupt(data: CrossDomainData) -> CrossDomainData:
        rows: Behaviors = getattr(data, part)
        spans = getattr(rows, column).clone()
        spans[row] = torch.tensor(span)
        return replace(data, **{part: replace(rows, **{column: spans})})

    return corrupt


# With every source behaviour kept, the source positives are ann's s1 s5 s3 s4 in 0 to 3, bob's
# s1 s6 in 4 and 5, cat's s2 s7 in 6 and 7, dan's s1 s8 in 8 and 9. Those of the target's training
# are ann's t1 t2 in 0 and 1.
PAST_LEAKS = {
    "train.source_past holds a behaviour later than the candidate, train row 0": in_past(
        "train", "source_past", 0, (0, 3)
    ),
    "valid.source_past holds a behaviour later than the candidate, valid row 1": in_past(
        "valid", "source_past", 1, (4, 6)
    ),
    "test.source_past holds another user's behaviour, test row 2": in_past(
        "test", "source_past", 2, (6, 9)
    ),
    "test.source_past begins with another user's, test row 3": in_past(
        "test", "source_past", 3, (7, 10)
    ),
    "valid.source_past reaches outside its list, valid row 0": in_past(
        "valid", "source_past", 0, (3, 2)
    ),
    # Each of the same time as the last entry, so that times say nothing.
    "train.target_past holds the candidate or a later behaviour, train row 0": in_past(
        "train", "target_past", 0, (0, 1)
    ),
    "train.target_past holds the candidate or a later behaviour, train row 1": in_past(
        "train", "target_past", 1, (0, 2)
    ),
    "train.target_past reaches outside its list, train row 3": in_past(
        "train", "target_past", 3, (2, 3)
    ),
    "valid.target_past begins with another user's, valid row 1": in_past(
        "valid", "target_past", 1, (0, 1)
    ),
}


@pytest.mark.parametrize("message", PAST_LEAKS)
def test_audit_finds_a_leak_planted_in_the_past_of_a_target_row(message: str) -> None:
    data = build("small", SOURCE, TARGET, source_cut="all")
    audit(data)
    with pytest.raises(ValueError, match=message):
        audit(PAST_LEAKS[message](data))


@pytest.mark.parametrize("message", LEAKS)
def test_audit_finds_a_leak_planted_in_good_data(message: str) -> None:
    data = build("small", SOURCE, TARGET)
    with pytest.raises(ValueError, match=message):
        audit(LEAKS[message](data))


def test_no_common_users_is_an_error_with_counts_and_examples() -> None:
    with pytest.raises(ValueError, match=r"(?s)source .*5 .*'ann'.*target 1 .*'zoe'"):
        build("x", SOURCE, log(("zoe", "t", 1, 0)))


def test_users_of_different_types_are_never_common() -> None:
    numbers = replace(TARGET, user=np.arange(len(TARGET)))
    with pytest.raises(ValueError, match="same type"):
        build("x", SOURCE, numbers)


def test_clocks_that_do_not_match_are_an_error() -> None:
    late = replace(SOURCE, time=SOURCE.time * 1000 + 1000)
    with pytest.raises(ValueError, match="same unit"):
        build("x", late, TARGET)


def test_nothing_to_train_on_is_an_error() -> None:
    with pytest.raises(ValueError, match="target.* 1 common users"):
        build("x", SOURCE, log(("ann", "t", 1, 5), ("ann", "t", 1, 6)))


def test_bad_arguments_are_errors() -> None:
    with pytest.raises(ValueError, match="source_cut"):
        build("x", SOURCE, TARGET, source_cut="never")
    with pytest.raises(ValueError, match=r"Interactions.label.*\(1,\)"):
        Interactions(np.array(["a", "b"]), np.array([1, 2]), np.array([True]))
