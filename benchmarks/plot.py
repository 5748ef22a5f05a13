"""Draw the figures of the documentation from the results of the cost benchmarks.

    python benchmarks/plot.py FOLDER [--to docs/_static/benchmarks]

FOLDER holds the files that benchmarks write with --json: hypergradient.json, epoch.json,
scaling.json and peers.json. Sweeps that were run separately may be in several files,
hypergradient*.json. A figure whose results are not there is left as it was. The same numbers give
the same figures, byte for byte. Needs the extra [plot].
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLACE = Path(__file__).parent.parent / "docs" / "_static" / "benchmarks"
WIDTH = 7.4  # inches of 72 points: the width of a column of the documentation
GREY = "#666666"

# Text is drawn as outlines, which look the same everywhere. A fixed salt gives fixed ids in the
# file.
STYLE = {
    "svg.fonttype": "path",
    "svg.hashsalt": "reweight",
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 9.0,
    "axes.titlesize": 9.0,
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
}


@dataclass(frozen=True)
class Line:
    """The style of one line; the markers differ as well as the colours."""

    label: str
    color: str
    marker: str
    dashes: str = "-"


# Colours from the palette of Okabe and Ito, which is safe for colour-blind readers.
METHODS = {
    "TorchOpt": Line("TorchOpt", "#009E73", "^"),
    "plain autograd": Line("plain autograd", "#D55E00", "s"),
    "reweight, fixed": Line("reweight", "#0072B2", "o"),
}
MODES = {
    "finite_difference": Line("differences", "#D55E00", "s"),
    "func": Line("torch.func", "#009E73", "^"),
    "autograd": Line("autograd", "#0072B2", "o"),
    "forward + backward": Line("forward +\nbackward", GREY, "d", "--"),
}
# Those of benchmarks/peers.py; ours last, so that nothing hides it.
CONTESTANTS = {
    "plain autograd": Line("plain autograd", "#D55E00", "s"),
    "TorchOpt": Line("TorchOpt", "#009E73", "^"),
    "Betty": Line("Betty", "#CC79A7", "v"),
    "Betty, differences": Line("Betty, differences", "#CC79A7", "<"),
    "BOAT": Line("BOAT", "#E69F00", "D"),
    "JAX, compiled": Line("JAX, compiled", GREY, "P"),
    "reweight, sample space": Line("reweight, sample space", "#0072B2", "X"),
    "reweight, Gauss-Newton": Line("reweight, Gauss–Newton", "#0072B2", "p"),
    "reweight, sampled verdict": Line("reweight, sampled verdict", "#0072B2", "h"),
    "reweight, first-order": Line("reweight, first-order", "#0072B2", "*"),
    "reweight": Line("reweight", "#0072B2", "o"),
}
RUNNERS = ("textbook BIAO", "example BIAO", "textbook base", "example base")
# By phase: the colour of the bar, and of the number on it.
PHASES = {
    "batch": ("#56B4E9", "black"),
    "model": ("#0072B2", "white"),
    "perceptron": ("#CC79A7", "black"),
    "backward": ("#E69F00", "black"),
    "optimizer": ("#009E73", "white"),
    "outer": ("#444444", "white"),
}

Rows = list[dict[str, Any]]


# -- results -------------------------------------------------------------------------------------


class Results:
    """The results in a folder. If there are none, the error names the commands for them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        kinds = dict.fromkeys(kind for kind, _ in FIGURES.values())
        found = {kind: sorted(folder.glob(f"{kind}*.json")) for kind in kinds}
        self.missing = {kind: command(folder, kind) for kind, paths in found.items() if not paths}
        if len(self.missing) == len(found):
            lines = "".join(f"\n  {line}" for line in self.missing.values())
            raise SystemExit(f"{folder} holds no results. These commands write them:{lines}")
        self._parts = {
            kind: [json.loads(path.read_text(encoding="utf-8")) for path in paths]
            for kind, paths in found.items()
        }

    @property
    def hypergradient(self) -> Rows:
        return [row for part in self._parts["hypergradient"] for row in part["rows"]]

    def last(self, kind: str) -> dict[str, Any]:
        """The result of a benchmark that is run as a whole."""
        result: dict[str, Any] = self._parts[kind][-1]
        return result

    def sweep(self, kind: str, along: str) -> Rows:
        """The rows of a sweep: they differ in ``along`` ("size" or "num_terms") and method."""
        fixed = "num_terms" if along == "size" else "size"
        groups: dict[int, dict[tuple[str, int], dict[str, Any]]] = {}
        for row in self.hypergradient:
            if row["kind"] == kind:
                groups.setdefault(row[fixed], {})[row["method"], row[along]] = row
        # The file does not separate its sweeps; the largest group of rows is the sweep.
        rows = max(groups.values(), key=len, default={}).values()
        if len({row[along] for row in rows}) < 2:
            raise SystemExit(
                f"{self.folder} holds no sweep of {kind} by {along}. This command writes it:"
                f"\n  {command(self.folder, 'hypergradient')}"
            )
        return sorted(rows, key=lambda row: row[along])


def command(folder: Path, kind: str) -> str:
    return f"python benchmarks/{kind}.py --json {folder / kind}.json"


# -- figures -------------------------------------------------------------------------------------


def by_rows(results: Results) -> Figure:
    rows = results.sweep("tables", "size")
    return _hypergradients(rows, "size", "rows of the largest table", _logarithmic)


def by_parameters(results: Results) -> Figure:
    rows = results.sweep("dense", "size")
    return _hypergradients(rows, "size", "parameters of a dense network", _logarithmic)


def by_terms(results: Results) -> Figure:
    rows = results.sweep("dense", "num_terms")
    return _hypergradients(rows, "num_terms", "terms of the series", _linear)


def by_phase(results: Results) -> Figure:
    """One bar per program, divided into its phases, with a legend above in the same order."""
    epoch = results.last("epoch")
    spent = {
        name: {
            **{phase: 1e3 * seconds for phase, seconds in epoch["phases"][name].items()},
            "outer": 1e3 * epoch["summary"]["outer"][name] / epoch["interval"],
        }
        for name in RUNNERS
    }
    longest = max(sum(parts.values()) for parts in spent.values())
    figure = _figure(2.6)
    axes = figure.subplots()
    names = []
    for place, parts in enumerate(spent.values()):
        left = 0.0
        for phase, (color, ink) in PHASES.items():
            width = parts[phase]
            bar = axes.barh(place, width, left=left, height=0.64, color=color, ec="white", lw=0.8)
            if place == 0:
                names.append((bar, "outer step" if phase == "outer" else phase))
            if width > 0.045 * longest:  # a narrower part has no space for its number
                middle = left + width / 2
                number = _three_digits(width)
                axes.text(middle, place, number, ha="center", va="center", color=ink, size=8.0)
            left += width
        axes.annotate(
            f"{_three_digits(left)} ms",
            (left, place),
            (5, 0),
            textcoords="offset points",
            va="center",
            weight="bold",
        )
    axes.set_yticks(range(len(RUNNERS)), RUNNERS)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("ms per training step")
    axes.legend(
        *zip(*names, strict=True),
        ncols=len(names),
        loc="lower left",
        bbox_to_anchor=(-0.01, 1.0),
        frameon=False,
        handlelength=1.0,
        handletextpad=0.4,
        columnspacing=1.2,
        borderaxespad=0.0,
    )
    return figure


def by_scale(results: Results) -> Figure:
    """Three sweeps side by side, with a common time axis."""
    figure = _figure(2.8)
    sweeps = ("batch size", "rows touched", "width")
    found = [
        {int(size): row for size, row in results.last("scaling")[name]["times"].items()}
        for name in sweeps
    ]
    # Widths in proportion to the range of each sweep, so that slopes can be compared.
    spans = [math.log(max(times) / min(times)) for times in found]
    panels = figure.subplots(1, len(sweeps), sharey=True, width_ratios=spans)
    for axes, name, times in zip(panels, sweeps, found, strict=True):
        ends = []
        for mode, line in MODES.items():
            points = [(size, row[mode]["ms"]) for size, row in times.items() if mode in row]
            ends.append(_draw(axes, line, points))
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(list(times), [f"{size:,}" for size in times], size=8.0)
        axes.minorticks_off()
        _times(axes)
        axes.set_title(name, loc="left")
    _name_lines(axes, ends)
    return figure


def by_peers(results: Results) -> Figure:
    """One panel per setting and one line per problem; a hollow mark has other numbers."""
    # The peers do not run on tables, nor on a network of one output.
    alone = ("table", "one output")
    rows = [row for row in results.last("peers")["rows"] if not row["cell"].startswith(alone)]
    cells = list(dict.fromkeys(row["cell"] for row in rows))
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    figure = _figure(1.4 + 0.3 * len(cells))
    panels = figure.subplots(1, len(settings), sharey=True)
    marks: dict[str, Artist] = {}
    for axes, setting in zip(panels, settings, strict=True):
        here = [row for row in rows if row["setting"] == setting]
        for method, line in CONTESTANTS.items():
            for agrees in (True, False):
                found = [r for r in here if r["method"] == method and r["agrees"] is agrees]
                if not found:
                    continue
                (mark,) = axes.plot(
                    [row["fb"] for row in found],
                    [cells.index(row["cell"]) for row in found],
                    color=line.color,
                    marker=line.marker,
                    mfc=line.color if agrees else "none",
                    ls="",
                    ms=7.0 if method.startswith("reweight") else 5.5,
                )
                marks.setdefault(line.label, mark)
        axes.set_xscale("log")
        axes.xaxis.get_major_locator().set_params(subs=(1.0, 2.0, 5.0))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.minorticks_off()
        axes.grid(alpha=0.3, lw=0.6)
        axes.set_title(setting, loc="left")
    panels[0].set_yticks(range(len(cells)), cells)
    panels[0].set_ylim(len(cells) - 0.5, -0.5)
    panels[1].set_xlabel("forward and backward passes of the model, without weights")
    figure.legend(
        marks.values(),
        marks.keys(),
        loc="outside upper left",
        ncols=4,
        frameon=False,
        handletextpad=0.2,
        columnspacing=1.2,
    )
    return figure


# By file: the benchmark whose results it shows, and how it is drawn.
FIGURES: dict[str, tuple[str, Callable[[Results], Figure]]] = {
    "rows": ("hypergradient", by_rows),
    "parameters": ("hypergradient", by_parameters),
    "terms": ("hypergradient", by_terms),
    "phases": ("epoch", by_phase),
    "scaling": ("scaling", by_scale),
    "peers": ("peers", by_peers),
}


# -- parts of figures ----------------------------------------------------------------------------

_End = tuple[Line, float, float]


def _figure(height: float) -> Figure:
    # Not pyplot, which would choose a GUI backend.
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), layout="constrained")


def _hypergradients(
    rows: Rows, along: str, label: str, scaled: Callable[[Axes, list[int]], None]
) -> Figure:
    """Time and memory of one hypergradient by every method."""
    figure = _figure(3.0)
    figure.get_layout_engine().set(wspace=0.06)
    panels = figure.subplots(1, 2)
    for axes, value, title in (
        (panels[0], "ms", "time of one hypergradient"),
        (panels[1], "mib", "memory at its peak"),
    ):
        ends = []
        for method, line in METHODS.items():
            points = [(row[along], row[value]) for row in rows if row["method"] == method]
            if points:
                ends.append(_draw(axes, line, points))
        scaled(axes, sorted({row[along] for row in rows}))
        (_times if value == "ms" else _sizes)(axes)
        axes.set_title(title, loc="left")
        axes.set_xlabel(label)
        _name_lines(axes, ends)
    return figure


def _draw(axes: Axes, line: Line, points: Iterable[tuple[float, float]]) -> _End:
    """Draw a line; return its style and its end point."""
    x, y = zip(*sorted(points), strict=True)
    axes.plot(x, y, color=line.color, marker=line.marker, ls=line.dashes, clip_on=False)
    return line, x[-1], y[-1]


def _logarithmic(axes: Axes, sizes: list[int]) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    powers = [10**n for n in range(12) if min(sizes) <= 10**n <= max(sizes)]
    axes.set_xticks(powers, [_count(size) for size in powers])
    axes.minorticks_off()


def _linear(axes: Axes, _: list[int]) -> None:
    axes.set_ylim(bottom=0.0)
    axes.locator_params(nbins=5, integer=True)


def _times(axes: Axes) -> None:
    _unit(axes, lambda ms: f"{ms:g} ms" if ms < 1e3 else f"{ms / 1e3:g} s")


def _sizes(axes: Axes) -> None:
    _unit(axes, lambda mib: f"{mib:g} MiB" if mib < 1e3 else f"{mib / 1024:.2g} GiB")


def _unit(axes: Axes, name: Callable[[float], str]) -> None:
    bottom, top = axes.get_ylim()
    if axes.get_yscale() == "log" and top < 200.0 * bottom:  # powers of ten alone are too few
        axes.yaxis.get_major_locator().set_params(subs=(1.0, 2.0, 5.0))
    axes.yaxis.set_major_formatter(lambda value, _: name(value))
    axes.grid(alpha=0.3, lw=0.6)


def _name_lines(axes: Axes, ends: list[_End]) -> None:
    """Write the name of each line next to its end, without overlaps."""
    axes.get_ylim()  # computes the limits that the transforms below use
    line_height = 12.0 / (0.7 * 72.0 * axes.figure.get_figheight())  # as a share of the panel
    for x in {end for _, end, _ in ends}:
        here = sorted((e for e in ends if e[1] == x), key=lambda e: e[2])
        to_axes = axes.transScale + axes.transLimits
        at = [to_axes.transform((x, y))[1] for _, _, y in here]
        tall = [line_height * (1 + line.label.count("\n")) for line, _, _ in here]
        for _ in range(20):  # more rounds than needed to separate so few labels
            for i in range(len(at) - 1):
                overlap = max(0.0, (tall[i] + tall[i + 1]) / 2 - (at[i + 1] - at[i]))
                at[i], at[i + 1] = at[i] - overlap / 2, at[i + 1] + overlap / 2
        for (line, _, _), y in zip(here, at, strict=True):
            axes.annotate(
                line.label,
                (x, y),
                (7, 0),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                color=line.color,
                va="center",
            )


def _count(number: int) -> str:
    """A power of ten with a unit."""
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number // size}{unit}"
    return str(number)


def _three_digits(ms: float) -> str:
    return f"{ms:.2f}" if ms < 10.0 else f"{ms:.1f}"


# -- files ---------------------------------------------------------------------------------------


def draw(folder: Path, to: Path) -> list[Path]:
    """Draw the figures whose results are there; return their paths."""
    try:
        import matplotlib
    except ImportError as error:
        raise SystemExit("plots need matplotlib: pip install '.[plot]'") from error
    results = Results(folder)
    to.mkdir(parents=True, exist_ok=True)
    paths = []
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **STYLE}):
        for name, (kind, figure) in FIGURES.items():
            if kind in results.missing:
                print(f"{name}: left as it was; this writes its results: {results.missing[kind]}")
                continue
            paths.append(to / f"{name}.svg")
            figure(results).savefig(paths[-1], metadata={"Date": None})
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the results of the benchmarks (--json)")
    parser.add_argument(
        "--to", type=Path, default=PLACE, help="default: the folder that the documentation uses"
    )
    arguments = parser.parse_args()
    for path in draw(arguments.folder, arguments.to):
        print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
