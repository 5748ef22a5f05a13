"""The plot of a ``Recorder``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from reweight.solvers import Status
from reweight.verdict import TRUSTED_RESIDUAL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# From the palette of Okabe and Ito, which is safe for colour-blind readers.
_BLUE, _ORANGE, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "#666666"

Rows = list[dict[str, Any]]


def plot_rows(rows: Rows, path: str | Path | None) -> Figure:
    """Four panels over the outer steps."""
    if not rows:
        raise ValueError("no outer steps were recorded: call recorder.add(step, result) first")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "plots need matplotlib: pip install matplotlib", name="matplotlib"
        ) from error
    # Not pyplot, which would keep a reference to the figure and choose a GUI backend.
    figure = Figure(figsize=(10.0, 6.4), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True)
    _weights(panels[0][0], rows)
    _residuals(panels[0][1], rows)
    _directions(panels[1][0], rows)
    _curvatures(panels[1][1], rows)
    for panel in panels[1]:
        panel.set_xlabel("step")
    for panel in panels.flat:
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    if path is not None:
        figure.savefig(path, dpi=110)
    return figure


def as_chosen(row: dict[str, Any]) -> bool:
    """Whether the choice of the solver explains that a solve is not exact."""
    return Status[row["status"]].by_design and not row["trustworthy"]


def _kind(row: dict[str, Any]) -> str:
    return "exact" if row["trustworthy"] else "as chosen" if as_chosen(row) else "not exact"


def _series(rows: Rows, name: str) -> tuple[list[int], list[float]]:
    kept = [(row["step"], row[name]) for row in rows if row[name] is not None]
    return [step for step, _ in kept], [value for _, value in kept]


def _weights(axes: Axes, rows: Rows) -> None:
    axes.set_title("weights of the batch", loc="left", pad=22)
    axes.set_ylabel("weight")
    steps, mean = _series(rows, "weight_mean")
    if not steps:
        axes.text(0.5, 0.5, "no weights were recorded", ha="center", transform=axes.transAxes)
        return
    low, high = _series(rows, "weight_smallest")[1], _series(rows, "weight_largest")[1]
    axes.fill_between(steps, low, high, color=_BLUE, alpha=0.2, lw=0, label="range")
    axes.plot(steps, mean, color=_BLUE, label="mean")
    # If all weights are 0 or one other value, the share equals the mean divided by the largest
    # weight. The space at the top keeps the two lines from overlapping.
    axes.set_ylim(min(0.0, *low), 1.3 * max(high) if max(high) > 0.0 else 1.0)
    share = axes.twinx()
    share.plot(
        *_series(rows, "weight_effective_share"), color=_ORANGE, ls="--", label="effective share"
    )
    share.set_ylim(0.0, 1.05)
    share.set_ylabel("effective share of the batch", color=_ORANGE)
    share.spines["top"].set_visible(False)
    _legend(axes, share)


def _residuals(axes: Axes, rows: Rows) -> None:
    axes.set_title("linear solves", loc="left", pad=22)
    axes.set_ylabel("relative residual")
    steps, residuals = _series(rows, "relative_residual")
    if any(value > 0.0 for value in residuals):
        axes.set_yscale("log")
    axes.plot(steps, residuals, color=_GREY, lw=0.8, zorder=1)
    for kind, marker, color in (
        ("exact", "o", _GREEN),
        ("as chosen", "o", _BLUE),
        ("not exact", "x", _ORANGE),
    ):
        part = [row for row in rows if _kind(row) == kind]
        if part:
            x, y = _series(part, "relative_residual")
            label = f"{kind} ({len(part)})"
            axes.scatter(x, y, s=14, marker=marker, color=color, lw=1, label=label, zorder=2)
    axes.axhline(TRUSTED_RESIDUAL, color=_GREY, ls="--", lw=1.0, label="limit")
    _legend(axes)


def _directions(axes: Axes, rows: Rows) -> None:
    axes.set_title("hypergradients", loc="left", pad=22)
    axes.set_ylabel("norm", color=_BLUE)
    steps, norms = _series(rows, "hypergradient_norm")
    axes.plot(steps, norms, color=_BLUE, label="norm")
    if all(value > 0.0 for value in norms):
        axes.set_yscale("log")
    angle = axes.twinx()
    angle.scatter(
        *_series(rows, "cosine_with_previous"), s=9, color=_ORANGE, label="cosine with the previous"
    )
    angle.axhline(0.0, color=_ORANGE, lw=0.5)
    angle.set_ylim(-1.05, 1.05)
    angle.set_ylabel("cosine", color=_ORANGE)
    angle.spines["top"].set_visible(False)
    _legend(axes, angle)


def _curvatures(axes: Axes, rows: Rows) -> None:
    axes.set_title("curvature met", loc="left", pad=22)
    axes.set_ylabel("vᵀHv / vᵀv")
    for name, color, label in (
        ("curvature", _BLUE, "largest"),
        ("smallest_curvature", _ORANGE, "smallest"),
    ):
        axes.plot(*_series(rows, name), color=color, label=label)
    axes.axhline(0.0, color=_GREY, lw=0.8)
    sizes = [abs(v) for v in _series(rows, "curvature")[1] if v]
    if sizes and max(sizes) > 100.0 * min(sizes):
        # Curvatures have both signs and may span orders of magnitude.
        axes.set_yscale("symlog", linthresh=min(sizes))
    _legend(axes)


def _legend(*axes: Axes) -> None:
    """One legend for all ``axes``, between the title and the panel."""
    found = [part.get_legend_handles_labels() for part in axes]
    handles = [handle for part, _ in found for handle in part]
    labels = [label for _, part in found for label in part]
    axes[0].legend(
        handles,
        labels,
        loc="lower left",
        bbox_to_anchor=(-0.01, 1.0),
        ncols=len(labels),
        frameon=False,
        fontsize="small",
        columnspacing=1.0,
        handletextpad=0.4,
        borderaxespad=0.2,
    )
