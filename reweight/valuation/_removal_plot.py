"""The plot of a removal curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from reweight.valuation.values import Floats

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# From the palette of Okabe and Ito, which is safe for colour-blind readers.
_STYLES = {
    "worst first": ("#009E73", "o", "-"),
    "at random": ("#666666", "s", "--"),
    "best first": ("#D55E00", "v", "-"),
}


def plot_curve(
    shares: Sequence[float],
    curves: Mapping[str, tuple[Floats, Floats]],
    num_seeds: int,
    score: str,
    path: str | Path | None,
) -> Figure:
    """One line for each way of removal: means ``[K]`` and their standard errors ``[K]``."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "plots need matplotlib: pip install matplotlib", name="matplotlib"
        ) from error
    # Not pyplot, which would keep a reference to the figure and choose a GUI backend.
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    percent = 100.0 * np.asarray(shares)
    for way, (mean, spread) in curves.items():
        color, marker, line = _STYLES[way]
        axes.plot(percent, mean, color=color, marker=marker, ls=line, ms=4, label=way)
        if num_seeds > 1:
            axes.fill_between(percent, mean - spread, mean + spread, color=color, alpha=0.2, lw=0)
    axes.set_xlabel("training samples removed, %")
    axes.set_ylabel(score)
    what = f"mean ± standard error, {num_seeds} seeds" if num_seeds > 1 else "one seed"
    axes.set_title(what, loc="right", fontsize="small")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(title="removed", frameon=False)
    if path is not None:
        figure.savefig(path, dpi=110)
    return figure
