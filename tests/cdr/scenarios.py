"""A log of two domains with every gap that real logs have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

NUM_USERS = 60


def gappy_log(seed: int = 0) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Source and target columns in which users 0, 5, … have no source behaviour in time, users
    1, 8, … one training row only, and users 2, 13, … two target behaviours, so none."""
    rng = np.random.default_rng(seed)
    user = np.arange(NUM_USERS)
    sizes = {"source": rng.integers(4, 20, NUM_USERS), "target": rng.integers(5, 10, NUM_USERS)}
    sizes["target"][user % 7 == 1] = 3
    sizes["target"][user % 11 == 2] = 2
    logs = []
    for domain, num_items in (("source", 100), ("target", 60)):
        size = sizes[domain]
        of = np.repeat(user, size)
        time = rng.integers(0, 500, len(of)) + (300 if domain == "target" else 0)
        if domain == "source":
            time[of % 5 == 0] += 1000
        item = np.concatenate([rng.choice(num_items, n, replace=False) for n in size])
        logs.append(
            {"user": of, "item": item, "rating": rng.integers(1, 6, len(of)), "timestamp": time}
        )
    return logs[0], logs[1]


def write_ratings(path: Path, source: dict[str, np.ndarray], target: dict[str, np.ndarray]) -> None:
    """The log as a csv file with the domains books and toys."""
    parts = [
        pa.table({**log, "domain": np.full(len(log["user"]), name)})
        for name, log in (("books", source), ("toys", target))
    ]
    pyarrow.csv.write_csv(pa.concat_tables(parts), path)
