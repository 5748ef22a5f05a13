"""Pairs of rows of one user each."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from cdr.training.same_users import SameUsers


@given(
    sizes=st.lists(st.integers(0, 4), min_size=1, max_size=12).filter(any),
    held_out=st.sets(st.integers(0, 47)),
    seed=st.integers(0, 100),
)
def test_pairs_are_of_one_user_and_of_two_rows(
    sizes: list[int], held_out: set[int], seed: int
) -> None:
    user = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    drawn = torch.tensor([row for row in range(len(user)) if row not in held_out]).long()
    rest = torch.tensor([row for row in range(len(user)) if row in held_out]).long()
    count = torch.bincount(user[drawn], minlength=len(sizes))
    pairs = SameUsers(user, len(sizes), drawn, seed)

    rows, others = pairs.partners(drawn)
    assert rows.tolist() == [row for row in drawn.tolist() if count[user[row]] > 1]
    assert torch.equal(user[rows], user[others])
    assert (rows != others).all() and not set(others.tolist()) - set(drawn.tolist())

    kept, beside = pairs.partners(rest)
    assert kept.tolist() == [row for row in rest.tolist() if count[user[row]] > 0]
    assert torch.equal(user[beside], user[kept])
    assert not set(beside.tolist()) - set(drawn.tolist())


def test_every_row_of_the_user_is_drawn_and_the_seed_says_which() -> None:
    user, drawn = torch.tensor([0, 0, 0, 0, 1]), torch.tensor([0, 1, 3, 4])
    rows = torch.zeros(400, dtype=torch.long)
    pairs = SameUsers(user, 2, drawn, 0)
    assert pairs.partners(rows)[1].unique().tolist() == [1, 3]
    assert pairs.partners(rows + 2)[1].unique().tolist() == [0, 1, 3]
    draws = [SameUsers(user, 2, drawn, seed).partners(rows)[1] for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
