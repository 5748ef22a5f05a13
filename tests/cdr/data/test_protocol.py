"""Protocols: which rows are trained on and tested on, against a loop over users, without leaks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scenarios import gappy_log

from cdr.data import LAST_ONE, CrossDomainData, Harm, Interactions, Protocol, audit, build, load
from cdr.runs.fingerprints import Fingerprints
from cdr.runs.runner import Source

PROTOCOLS = st.one_of(
    st.builds(
        Protocol,
        test=st.just("last-share"),
        test_share=st.sampled_from([0.05, 0.2, 0.3, 0.5, 0.9]),
        max_target_history=st.sampled_from([None, 1, 2, 5]),
    ),
    st.builds(Protocol, max_target_history=st.sampled_from([None, 1, 2, 5])),
)


def scenario(protocol: Protocol, seed: int = 0) -> CrossDomainData:
    rows = [
        Interactions(log["user"], log["item"], log["rating"] > 3, log["timestamp"].astype(float))
        for log in gappy_log(seed)
    ]
    return build("gappy", *rows, protocol=protocol)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), PROTOCOLS)
def test_parts_are_those_of_a_loop_over_users(counts: list[int], protocol: Protocol) -> None:
    user = np.repeat(np.arange(len(counts)), counts)
    parts = protocol.parts(user)
    for u in range(len(counts)):
        rows = np.flatnonzero(user == u).tolist()
        # Whole hundredths, so that no rounding is involved.
        share = round(100 * protocol.test_share) * len(rows) // 100
        tested = max(1, share) if protocol.test == "last-share" else 1
        before, test = rows[:-tested], rows[-tested:]
        train, valid = before[:-1], before[-1:]
        if protocol.max_target_history is not None:
            train = train[-protocol.max_target_history :]
        told = [[r for r in np.flatnonzero(part).tolist() if user[r] == u] for part in parts]
        assert told == [train, valid, test]


@given(PROTOCOLS, st.integers(0, 5))
def test_no_protocol_leaks(protocol: Protocol, seed: int) -> None:
    if protocol.test_share == 0.9:
        return  # no user of this log has the ten behaviours that leave one to train on
    data = scenario(protocol, seed)
    audit(data)
    last = torch.full((data.num_users,), torch.inf).double()
    last[data.valid.user] = data.times.valid
    for rows, times in ((data.source, data.times.source), (data.train, data.times.train)):
        slack = rows is data.train  # of one day there may be several target behaviours
        assert not ((times > last[rows.user]) if slack else (times >= last[rows.user])).any()
    # Every test row has the training positives of its user in its history, and no other one's.
    for row in range(len(data.test)):
        first, end = data.test.target_past[row].tolist()
        seen = data.target_history.origin[first:end].tolist()
        own = (data.train.user == data.test.user[row]) & (data.train.label == 1)
        assert seen == own.nonzero().flatten().tolist()


def test_an_audit_finds_a_training_row_behind_the_first_of_several_test_rows() -> None:
    data = scenario(Protocol(test="last-share", test_share=0.3))
    several = int(torch.bincount(data.test.user).argmax())
    first = (data.test.user == several).nonzero()[0]
    trained = (data.train.user == several).nonzero()[0]
    no_valid = data.valid.user == several
    data.times.valid[no_valid] = torch.nan
    data.times.train[trained] = data.times.test[first] + 1
    with pytest.raises(ValueError, match="later than the test"):
        audit(data)


def test_the_default_is_the_protocol_of_the_paper() -> None:
    user = np.array([0, 0, 0, 0, 1, 1, 2])
    told = [np.flatnonzero(part).tolist() for part in LAST_ONE.parts(user)]
    assert told == [[0, 1], [2, 4], [3, 5, 6]]
    assert str(LAST_ONE) == "" and LAST_ONE.short() == ()


def test_notes_say_what_was_done() -> None:
    data = scenario(Protocol(test="last-share", test_share=0.3, max_target_history=2))
    tested, capped = data.notes[:2]
    assert "last 30 %" in tested and f"{len(data.test):,} rows" in tested
    left_out = data.statistics["target"] - sum(
        len(part) for part in (data.train, data.valid, data.test)
    )
    assert left_out > 0 and f"{left_out:,} earlier ones" in capped
    assert int(torch.bincount(data.train.user).max()) == 2


@pytest.mark.parametrize(
    ("given", "cause"),
    [
        ({"test": "last-share", "test_share": 0.0}, "--data.test-share 0.0"),
        ({"test": "last-share", "test_share": 1.0}, "--data.test-share 1.0"),
        ({"test_share": 0.3}, "--data.test last-share"),
        ({"max_target_history": 0}, "--data.max-target-history 0"),
    ],
)
def test_options_out_of_range_are_refused(given: dict[str, float], cause: str) -> None:
    with pytest.raises(ValueError, match=cause):
        Protocol(**given)


def test_a_share_that_leaves_nothing_to_train_on_is_an_error() -> None:
    with pytest.raises(ValueError, match="--data.test-share"):
        scenario(Protocol(test="last-share", test_share=0.9))


def test_generated_data_and_files_take_it(ratings: Path) -> None:
    protocol = Protocol(test="last-share", max_target_history=1)
    for data in (
        load("g1", num_users=30, protocol=protocol),
        load(str(ratings), source="books", target="toys", protocol=protocol),
    ):
        assert data.protocol == protocol and int(torch.bincount(data.train.user).max()) == 1
        audit(data)


def test_a_fingerprint_tells_protocols_apart(ratings: Path, tmp_path: Path) -> None:
    kept = Fingerprints(tmp_path)
    named = (("source", "books"), ("target", "toys"))
    others = [
        Protocol(test="last-share"),
        Protocol(test="last-share", test_share=0.3),
        Protocol(max_target_history=2),
    ]
    sources = [Source(str(ratings), (*named, ("protocol", one))) for one in others]
    told = [str(kept.of(source)) for source in (Source(str(ratings), named), *sources)]
    assert len(set(told)) == 4


def test_a_harm_is_done_to_data_of_any_protocol(ratings: Path) -> None:
    protocol = Protocol(test="last-share", test_share=0.3, max_target_history=2)
    named = {"source": "books", "target": "toys", "protocol": protocol}
    plain, harmed = (load(str(ratings), **named, harm=harm) for harm in (None, Harm("flip-items")))
    audit(harmed)
    assert harmed.relevant is not None and harmed.protocol == protocol
    for part in ("train", "valid", "test"):
        assert torch.equal(getattr(plain, part).item, getattr(harmed, part).item)
