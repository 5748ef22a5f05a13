"""One page that shows a folder of results: a file by itself, to be opened in a browser."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cdr.common import to_json
from cdr.report import plots
from cdr.report.document import Document
from cdr.report.learned import Learned
from cdr.report.parts import Parts
from cdr.report.plots import Picture
from cdr.report.readable import visible
from cdr.report.template import TEMPLATE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLES = ("-", "--", ":")

Curves = Mapping[tuple[str, str], Sequence[Sequence[float]]]
"""By panel and method, of each seed the validation AUC of each epoch."""


def write_page(
    folder: Path,
    document: Document,
    curves: Curves,
    learned: Sequence[Learned] = (),
    parts: Parts | None = None,
) -> None:
    """Write report.html into a folder that has command, config and environment already.

    The pictures of the document have to be there as svg files, but for those that could not be
    drawn; learning curves are drawn here, if matplotlib is installed.

    Args:
        folder: Of a run.
        document: What it has shown.
        curves: See :data:`Curves`.
        learned: Weights to show.
        parts: Of the report: those that cannot be made are left out. If None, the first that
            cannot be made is an error.
    """
    part = nullcontext if parts is None else parts.part
    pictures = [one for one in document.pictures if (folder / f"{one.name}.svg").exists()]
    notes = document.notes
    if curves and plots.available():
        with part("the picture of the learning curves"):
            drawn = learning_curves(curves)
            drawn.save(folder)
            pictures.append(drawn)
    elif curves:
        notes = (*notes, "Learning curves need matplotlib: pip install matplotlib.")
    told = replace(document, notes=notes)
    before = [] if parts is None else [*parts.failed]
    with part("report.html with the learned weights" if learned else "report.html"):
        _write(folder, told, pictures, learned)
    if learned and parts is not None and parts.failed != before:
        with part("report.html"):
            _write(folder, told, pictures, ())


def _write(
    folder: Path, document: Document, pictures: Sequence[Picture], learned: Sequence[Learned]
) -> None:
    import jinja2

    pages = jinja2.Environment(autoescape=True, trim_blocks=True, finalize=_visible)
    template = pages.from_string(TEMPLATE)
    read = {name: json.loads(_read(folder / f"{name}.json")) for name in _JSON}
    page = template.render(
        document=document,
        learned=learned,
        pictures=[(picture, _inline(folder / f"{picture.name}.svg")) for picture in pictures],
        command=_read(folder / "command.txt").strip(),
        **{name: to_json(value, indent=2) for name, value in read.items()},
    )
    (folder / "report.html").write_bytes(page.encode("utf-8", "replace"))


_JSON = ("config", "environment")


def _read(path: Path) -> str:
    """A text; the bytes of a path in it need not be UTF-8."""
    return path.read_text(encoding="utf-8", errors="replace")


def _visible(value: object) -> object:
    """What a template puts out, without control characters; markup has none left."""
    return visible(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def learning_curves(curves: Curves) -> Picture:
    """Validation AUC by epoch, a panel for each scenario and model."""
    titles = list(dict.fromkeys(title for title, _ in curves))
    columns = min(2, len(titles))

    def draw(figure: Figure) -> None:
        axes = plots.panels(figure, len(titles), columns)
        for panel, title in zip(axes, titles, strict=True):
            methods = [(name, seeds) for (t, name), seeds in curves.items() if t == title]
            for place, (name, seeds) in enumerate(methods):
                color = plots.COLORS[place % len(plots.COLORS)]
                style = _STYLES[place // len(plots.COLORS) % len(_STYLES)]
                longest = max(map(len, seeds))
                padded = np.full((len(seeds), longest), np.nan)
                for row, values in zip(padded, seeds, strict=True):
                    row[: len(values)] = values
                    # Each ends where its training stopped.
                    epochs = np.arange(1, len(values) + 1)
                    panel.plot(epochs, values, color=color, ls=style, lw=0.6, alpha=0.4)
                # As long as most seeds are still in training: later means are of few.
                kept = int((2 * (~np.isnan(padded)).sum(0) >= len(seeds)).sum())
                mean = np.nanmean(padded[:, :kept], axis=0)
                panel.plot(np.arange(1, kept + 1), mean, color=color, ls=style, label=name)
            panel.set_title(title, loc="left")
            panel.set_xlabel("epoch")
            panel.set_ylabel("validation AUC")
            panel.locator_params(axis="x", integer=True)
            panel.grid(alpha=0.3, lw=0.6)
            panel.legend(frameon=False, fontsize=7.0, ncols=1 + len(methods) // 8)

    caption = "Validation AUC by epoch: thin lines are seeds, thick ones their mean."
    # A panel by itself is narrow, so that its letters can be read on a phone.
    width = plots.WIDTH if columns > 1 else 5.0
    return Picture("curves", caption, draw, 0.3 + 3.0 * -(-len(titles) // columns), width)


def _inline(path: Path) -> str:
    """The picture as part of the page; as an image, so that names inside do not clash."""
    return "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode()
