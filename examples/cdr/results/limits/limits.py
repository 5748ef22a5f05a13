"""What keeps retraining on learned weights from what the true flags give, a cause at a time.

    python examples/cdr/results/limits/limits.py GRID > examples/cdr/results/limits/table.csv

GRID is the cache of `reproduce.py generated --models conet`; the weights of its searches are taken.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import torch

from cdr.runs import Grid, Source, Task
from cdr.training import preset, train

KEPT = ("base", "ours", "retrain", "oracle")


def main() -> None:
    torch.set_num_threads(1)
    grid, options = Grid(Path(sys.argv[1]), ""), preset("default", "conet")
    table = csv.writer(sys.stdout)
    table.writerow(
        (
            "data",
            "seed",
            "weight AUC",
            "mean if relevant",
            "otherwise",
            *KEPT,
            "order",
            "sized flags",
        )
    )
    for spec in ("g1", "g2"):
        source = Source(spec, seeded=True)
        for seed in range(6):
            runs = [grid.load(Task(v, seed, source, options, "cpu")) for v in (*KEPT, "search")]
            searched = runs.pop()
            assert searched is not None and searched.weights is not None
            data = source.load(seed)
            assert data.relevant is not None
            flags, weights = data.relevant.numpy(), searched.weights
            mean, rest = weights[flags].mean(), weights[~flags].mean()
            # The highest as 1, as many as are relevant; and the flags at the size they were given.
            order = (weights >= np.quantile(weights, 1 - flags.mean())).astype(np.float32)
            fixed = (order, (flags * mean).astype(np.float32))
            aucs = [run.scores.metrics()["auc"] for run in runs if run is not None]
            for given in fixed:
                scores = train("retrain", data, options, seed, learned=given).extra_test
                assert scores is not None
                aucs.append(scores.metrics()["auc"])
            told = (searched.weight_auc, mean, rest, *aucs)
            table.writerow((spec, seed, *(f"{value:.4f}" for value in told)))


if __name__ == "__main__":
    main()
