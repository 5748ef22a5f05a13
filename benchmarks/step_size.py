"""Cost and accuracy of Neumann series with several step sizes, while a model is trained.

    python benchmarks/step_size.py [--json FILE]

The model of examples/noisy_labels.py is trained with learned weights. At every tenth outer step,
each choice of the step size computes a hypergradient on the same batches. Each is compared with
converged conjugate gradients, in float64 and at damping 0.01 for every solver. The table shows the
cosine of the influences and the relative residual: the median over the steps, and the worst value.
"""

from __future__ import annotations

import argparse
import json
import statistics
import warnings
from pathlib import Path
from typing import Any

import noisy_labels
import torch
from torch import nn

import reweight
from reweight import ConjugateGradient, ImplicitHypergradient, Neumann

DAMPING = 0.01
WARMUP, STEPS, EVERY = 200, 900, 50


def candidates() -> dict[str, reweight.solvers.LinearSolver]:
    return {
        "Neumann(3), the default": Neumann(3),
        "Neumann(5)": Neumann(5),
        "Neumann(3, 1.0), the paper's": Neumann(3, step_size=1.0),
        "Neumann(3, 0.1)": Neumann(3, step_size=0.1),
    }


def measure() -> dict[str, list[dict[str, float]]]:
    """For each candidate, one row per compared outer step."""
    torch.manual_seed(1)
    centers = torch.randn(noisy_labels.NUM_CLASSES, noisy_labels.NUM_FEATURES)
    (features, labels), dev = (noisy_labels.make_data(n, centers) for n in (2000, 200))
    wrong = torch.rand(len(labels)) < noisy_labels.NOISE
    labels = torch.where(wrong, (labels + torch.randint(1, 5, labels.shape)) % 5, labels)
    model = nn.Sequential(nn.Linear(20, 64), nn.Tanh(), nn.Linear(64, 5)).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, weight_decay=1e-4)
    weighter = reweight.LossWeighter().double()
    outer_optimizer = torch.optim.Adam(weighter.parameters(), lr=1e-2)

    def wrapped(solver: Any) -> reweight.Reweighted:
        return reweight.wrap(
            model,
            weighter,
            noisy_labels.losses,
            noisy_labels.outer_loss,
            optimizer,
            ImplicitHypergradient(solver, damping=DAMPING, verdict_every=1),
        )

    rw = wrapped(Neumann())
    exact = wrapped(ConjugateGradient(2000, rtol=1e-8))
    others = {name: wrapped(solver) for name, solver in candidates().items()}
    features, dev = features.double(), (dev[0].double(), dev[1])
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in others}
    for step in range(STEPS):
        chosen = torch.randint(len(labels), (100,))
        batch = features[chosen], labels[chosen]
        optimizer.zero_grad()
        rw.loss(batch).backward()
        optimizer.step()
        if step >= WARMUP and step % 5 == 0:
            outer_optimizer.zero_grad()
            rw.outer_backward(batch, dev)
            outer_optimizer.step()
        if step >= WARMUP and step % EVERY == 0:
            truth = exact.hypergradient(batch, dev)
            for name, other in others.items():
                result = other.hypergradient(batch, dev)
                cosine = torch.cosine_similarity(result.influence, truth.influence, dim=0)
                rows[name].append(
                    {
                        "cosine": float(cosine),
                        "residual": result.info.relative_residual,
                        "num_hvps": result.info.num_hvps,
                    }
                )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # with the paper's step size the series diverges here
    rows = measure()
    width = max(map(len, rows))
    print(f"{'':{width}}  {'HVPs':>4}  {'cosine':>14}  {'relative residual':>19}")
    print(f"{'':{width}}  {'':4}  {'median':>7}{'worst':>7}  {'median':>9}{'worst':>10}")
    for name, found in rows.items():
        cosines = [row["cosine"] for row in found]
        residuals = [row["residual"] for row in found]
        hvps = statistics.median(row["num_hvps"] for row in found)
        print(
            f"{name:{width}}  {hvps:4.0f}  {statistics.median(cosines):7.3f}{min(cosines):7.3f}  "
            f"{statistics.median(residuals):9.3g}{max(residuals):10.3g}"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
