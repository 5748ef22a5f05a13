"""Results made up: scores of a known strength, for tables and figures."""

from __future__ import annotations

import numpy as np

from cdr.paper.scenarios import Scenario
from cdr.paper.studies import STUDIES
from cdr.paper.study import Cell, Method, Results, Study
from cdr.report.document import Document
from cdr.runs.grid import Run
from cdr.runs.runner import Source
from cdr.training.evaluation import Scores
from cdr.training.metrics import auc

G1 = Scenario("g1")
BOOKS_TOYS = Scenario("amazon", "Books", "Toys_and_Games")


def run(
    strength: float,
    seed: int,
    *,
    weights: np.ndarray | None = None,
    weight_auc: float | None = None,
    valid: float = 0.6,
) -> Run:
    """A training whose scores tell positives from negatives the better, the higher `strength`."""
    label = (np.random.default_rng(99).random(300) < 0.6).astype(np.float32)
    noise = np.random.default_rng(seed).standard_normal(300)
    probability = (1 / (1 + np.exp(-strength * (label - 0.5) - noise))).astype(np.float32)
    scores = Scores(probability, label, np.arange(300) % 100)
    history = [
        {"epoch": 1, "loss": 0.7, "auc": valid - 0.1},
        {"epoch": 2, "loss": 0.6, "auc": valid},
    ]
    return Run(f"key{strength}{seed}", scores, None, history, weights, weight_auc, 1.0)


def runs(
    study: Study,
    strengths: dict[str, float],
    scenario: Scenario = G1,
    model: str = "conet",
    seeds: int = 3,
) -> dict[Cell, dict[int, Run]]:
    """Of some methods of a study, over seeds whose noise is the same for all."""
    methods = {method.name: method for method in study.methods}
    return {
        Cell(scenario, model, methods[name]): {s: run(strength, s) for s in range(seeds)}
        for name, strength in strengths.items()
    }


def document(
    command: str,
    runs: dict[Cell, dict[int, Run]],
    sources: dict[Scenario, Source] | None = None,
) -> Document:
    """What a command makes of some runs."""
    study = STUDIES[command]
    return study.document(Results(study, sources or {}, runs))


def aucs(several: dict[int, Run]) -> list[float]:
    """Test AUC of each seed."""
    return [auc(r.test.probability, r.test.label) for r in several.values()]


def method(name: str, **changes: float) -> Method:
    """The base model with some options."""
    told = tuple((key.replace("_", ".", 1), value) for key, value in changes.items())
    return Method(name, f" {name}", "base", told)
