"""Pictures by matplotlib: one look for all, and the same numbers give the same files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdr.report.readable import readable, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 7.6  # inches
GREY = "#666666"
# The palette of Okabe and Ito, which people who see colours otherwise can tell apart; markers
# tell lines apart as well.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

_STYLE: dict[str, Any] = {
    "svg.fonttype": "path",  # outlines look the same everywhere
    "svg.hashsalt": "reweight",
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 9.0,
    "text.parse_math": False,  # a name with "$" in it is no formula
    "axes.titlesize": 10.0,
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 5.0,
    "savefig.dpi": 160,
}


@dataclass(frozen=True)
class Picture:
    """A picture that is still to be drawn.

    Attributes:
        name: of its files, without an ending.
        caption: one sentence on what it shows.
        draw: puts everything into an empty figure.
        height: inches.
        width: inches.
    """

    name: str
    caption: str
    draw: Callable[[Figure], None] = field(repr=False)
    height: float
    width: float = WIDTH

    def save(self, folder: Path) -> None:
        """Write it as png and as svg."""
        import matplotlib
        from matplotlib.figure import Figure  # not through pyplot, which would look for a display
        from matplotlib.text import Text

        defaults: Any = matplotlib.rcParamsDefault  # matplotlib types its keys as literals
        style: Any = {**defaults, **_STYLE}
        with matplotlib.rc_context(style):
            figure = Figure(figsize=(self.width, self.height), layout="constrained")
            self.draw(figure)
            # Names are from files: a control character in one would end the svg file.
            for text in figure.findobj(Text):
                text.set_text(visible(text.get_text()))
            figure.savefig(folder / f"{self.name}.png")
            figure.savefig(folder / f"{self.name}.svg", metadata={"Date": None})


def available() -> bool:
    """Whether pictures can be drawn: matplotlib is installed, and can be imported."""
    return find_spec("matplotlib") is not None and not broken()


@lru_cache(maxsize=1)
def broken() -> str:
    """Why matplotlib cannot be imported although it is installed; "" if it can, or is not."""
    if find_spec("matplotlib") is None:
        return ""
    try:
        import matplotlib.backends.backend_agg
        import matplotlib.backends.backend_svg
        import matplotlib.figure  # noqa: F401
    except Exception as error:  # also what a package raises that was built for another numpy
        return f"matplotlib cannot be imported ({type(error).__name__}: {readable(str(error))})"
    return ""


def needed() -> None:
    """Refuse to go on without matplotlib, before anything is trained.

    Raises:
        ValueError: It is not installed, or cannot be imported.
    """
    if not available():
        why = broken() or "it is not installed"
        raise ValueError(f"pictures need matplotlib, and {why}: pip install matplotlib")


def panels(figure: Figure, num: int, columns: int, share_axes: bool = False) -> list[Axes]:
    """Panels from left to right, row by row; the places that remain in the last row stay empty.

    Args:
        figure: An empty figure.
        num: Number of panels.
        columns: Panels in a row.
        share_axes: Whether all panels have the same limits.
    """
    rows = -(-num // columns)
    axes = figure.subplots(
        rows, columns, squeeze=False, sharex=share_axes, sharey=share_axes
    ).ravel()
    for left_over in axes[num:]:
        left_over.set_visible(False)
    return list(axes[:num])
