"""Random behaviours in one domain."""

from __future__ import annotations

import numpy as np

from cdr.data import Interactions


def behaviours(
    rng: np.random.Generator, num_users: int, num_items: int, num_rows: int, start: float = 0.0
) -> Interactions:
    """Five behaviours per user, plus a random number of further ones; every item occurs.

    The times are random in ``[start, start + 1)``.
    """
    share = rng.exponential(size=num_users)
    counts = 5 + rng.multinomial(num_rows - 5 * num_users, share / share.sum())
    popularity = (np.arange(num_items) + 5.0) ** -0.9
    again = rng.choice(num_items, num_rows - num_items, p=popularity / popularity.sum())
    item = rng.permutation(np.concatenate([np.arange(num_items), again]))
    return Interactions(
        user=np.repeat(np.arange(num_users), counts),
        item=item,
        label=rng.random(num_rows) < 0.8,
        time=start + rng.random(num_rows),
        category=np.char.add("category ", (item % 20).astype(str)),
    )
