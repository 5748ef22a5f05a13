"""One page that shows a folder of results: a file by itself, to be opened in a browser."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cdr.common import to_json
from cdr.report import plots
from cdr.report.document import Document
from cdr.report.plots import Picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLES = ("-", "--", ":")

_TEMPLATE = """\
{% macro table(sheet) %}
<div class="wide"><table>
{% if sheet.title %}<caption>{{ sheet.title }}</caption>{% endif %}
<thead>
{% if sheet.grouped %}<tr>{% for heading, heads in sheet.groups %}<th colspan="{{ heads|length }}">
{{- heading }}</th>{% endfor %}</tr>{% endif %}
<tr>{% for _, heads in sheet.groups %}{% set outer = loop.index0 %}{% for head in heads %}
<th{% if outer == 0 and loop.index0 < sheet.left %} class="left"{% endif %}>{{ head }}</th>
{%- endfor %}{% endfor %}</tr>
</thead>
<tbody>
{% for row in sheet.rows %}<tr>{% for cell in row %}
<td{% if loop.index0 < sheet.left %} class="left"{% endif %}>{{ cell }}</td>
{%- endfor %}</tr>
{% endfor %}</tbody>
</table></div>
{% endmacro %}
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ document.title }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; margin: 2rem auto; padding: 0 1rem;
  max-width: 76rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.6rem; border-bottom: 1px solid #ddd; text-align: right;
  vertical-align: top; }
th.left, td.left { text-align: left; }
tr > :first-child { white-space: nowrap; }
.wide + .wide { margin-top: 1.2rem; }
thead tr:first-child th[colspan] { text-align: center; border-bottom: 1px solid #888; }
caption { text-align: left; font-weight: 600; padding: 0.8rem 0 0.2rem; }
figure { margin: 1.5rem 0; } figure img { max-width: 100%; height: auto; }
figcaption { color: #444; font-size: 0.9rem; }
pre { background: #f5f5f5; padding: 0.8rem; overflow-x: auto; font-size: 0.85rem; }
details { margin: 0.6rem 0; } summary { cursor: pointer; }
</style>
</head>
<body>
<h1>{{ document.title }}</h1>
{% for sheet in document.sheets %}{{ table(sheet) }}{% endfor %}
<ul>{% for note in document.notes %}<li>{{ note }}</li>{% endfor %}</ul>
{% for picture, source in pictures %}
<figure><img src="{{ source }}" alt="{{ picture.caption }}">
<figcaption>{{ picture.caption }}</figcaption></figure>
{% endfor %}
{% for sheet in document.appendix %}{{ table(sheet) }}{% endfor %}
<h2>How it was made</h2>
<pre>{{ command }}</pre>
<details><summary>Options</summary><pre>{{ config }}</pre></details>
<details><summary>Environment</summary><pre>{{ environment }}</pre></details>
</body>
</html>
"""

Curves = Mapping[tuple[str, str], Sequence[Sequence[float]]]
"""By panel and method, of each seed the validation AUC of each epoch."""


def write_page(folder: Path, document: Document, curves: Curves) -> None:
    """Write report.html into a folder that has command, config and environment already.

    The pictures of the document have to be there as svg files; learning curves are drawn here, if
    matplotlib is installed.
    """
    import jinja2

    pictures = [*document.pictures]
    notes = document.notes
    if curves and plots.available():
        pictures.append(learning_curves(curves))
        pictures[-1].save(folder)
    elif curves:
        notes = (*notes, "Learning curves need matplotlib: pip install matplotlib.")
    template = jinja2.Environment(autoescape=True, trim_blocks=True).from_string(_TEMPLATE)
    read = {
        name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in _JSON
    }
    page = template.render(
        document=replace(document, notes=notes),
        pictures=[(picture, _inline(folder / f"{picture.name}.svg")) for picture in pictures],
        command=(folder / "command.txt").read_text(encoding="utf-8").strip(),
        **{name: to_json(value, indent=2) for name, value in read.items()},
    )
    (folder / "report.html").write_text(page, encoding="utf-8")


_JSON = ("config", "environment")


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
    return Picture("curves", caption, draw, 0.3 + 3.0 * -(-len(titles) // columns))


def _inline(path: Path) -> str:
    """The picture as part of the page; as an image, so that names inside do not clash."""
    return "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode()
