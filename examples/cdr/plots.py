"""Pictures by matplotlib: one look for all, and the same numbers give the same files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 7.6  # inches
GREY = "#666666"
# The palette of Okabe and Ito, which people who see colours otherwise can tell apart; markers
# tell lines apart as well.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

_STYLE = {
    "svg.fonttype": "path",  # outlines look the same everywhere
    "svg.hashsalt": "reweight",
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 5.0,
    "savefig.dpi": 160,
}

Draw = Callable[["Figure"], None]


def needed() -> None:
    """Refuse to go on without matplotlib, before anything is trained.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ValueError("pictures need matplotlib: pip install 'torch-reweight[plot]'") from error


def save(draw: Draw, path: Path, height: float, width: float = WIDTH) -> None:
    """Draw a picture and write it as ``path``.png and ``path``.svg.

    Args:
        draw: puts everything into an empty figure.
        path: without an ending.
        height: inches.
        width: inches.
    """
    import matplotlib
    from matplotlib.figure import Figure  # not through pyplot, which would look for a display

    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **_STYLE}):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        figure.savefig(path.with_name(path.name + ".png"))
        figure.savefig(path.with_name(path.name + ".svg"), metadata={"Date": None})


def panels(figure: Figure, num: int, columns: int, **told: object) -> list[Axes]:
    """Panels from left to right, row by row; the places left over stay empty."""
    rows = -(-num // columns)
    axes = figure.subplots(rows, columns, squeeze=False, **told).ravel()
    for left_over in axes[num:]:
        left_over.set_visible(False)
    return list(axes[:num])
