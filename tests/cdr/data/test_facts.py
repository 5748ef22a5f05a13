"""What the perceptron may see of a behaviour beside its item."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cdr.data import CrossDomainData, Interactions, build, source_facts
from cdr.data.batches import Batches


def _log(*rows: tuple[str, str, int, float]) -> Interactions:
    user, item, label, time = zip(*rows, strict=True)
    return Interactions(
        np.array(user), np.array(item), np.array(label, dtype=bool), np.array(time, dtype=float)
    )


@pytest.fixture(scope="module")
def small() -> CrossDomainData:
    """Ann has three source behaviours, bob one; the item a is met twice."""
    source = _log(("ann", "a", 1, 3), ("ann", "b", 0, 1), ("ann", "c", 1, 2), ("bob", "a", 0, 1))
    target = [(user, f"t{t}", t % 2, 10 + t) for user in ("ann", "bob") for t in range(4)]
    return build("small", source, _log(*target))


def test_they_are_in_the_order_of_the_behaviours(small: CrossDomainData) -> None:
    facts = source_facts(small, ["label", "recency", "popularity"], 4)
    # Ann's by time: b, c, a. Counts 1, 1, 2 and 2: one standard deviation below and above.
    expected = [[-1, -1, -1, 0], [1, 0, -1, 0], [1, 1, 1, 0], [-1, 0, 1, 0]]
    # float32 keeps seven digits.
    torch.testing.assert_close(facts, torch.tensor(expected).float(), rtol=0, atol=1e-6)


def test_an_item_is_liked_as_others_do(small: CrossDomainData) -> None:
    facts = source_facts(small, ["liking"], 1)
    # b and c have no other behaviour but an average one, which is as often positive as not; a is
    # disliked by bob and liked by ann.
    assert facts.flatten().tolist() == [0.0, 0.0, -0.5, 0.5]


def test_items_that_are_all_equally_popular_tell_nothing() -> None:
    rows = [(user, f"s{n}{user}", n % 2, n) for user in ("ann", "bob") for n in range(3)]
    target = [(user, f"t{t}", t % 2, 10 + t) for user in ("ann", "bob") for t in range(4)]
    facts = source_facts(build("equal", _log(*rows), _log(*target)), ["popularity"], 1)
    assert facts.flatten().tolist() == [0.0] * 6


def test_batches_show_those_of_their_source_behaviours(gappy: CrossDomainData) -> None:
    facts = source_facts(gappy, ["label", "recency"], 2)
    batch = Batches(gappy, 0, 0, facts=facts).train_pairs(torch.arange(len(gappy.train)))
    assert batch.source_facts is not None
    assert 0 < int(batch.has_source.sum()) < len(batch)
    there = batch.source_facts[batch.has_source]
    assert torch.equal(there, facts[batch.source_row[batch.has_source]])
    assert torch.equal(there[:, 0], 2 * batch.source_label[batch.has_source] - 1)
    assert not batch.source_facts[~batch.has_source].any()
    assert math.isclose(float(facts[:, 1].abs().max()), 1.0)
