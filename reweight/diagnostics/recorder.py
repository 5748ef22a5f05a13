"""A record of the outer steps."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from torch import Tensor

from reweight._tensors import cosine, norm
from reweight.diagnostics._plot import as_chosen, plot_rows
from reweight.diagnostics.weights import WeightSummary
from reweight.hypergradient import Hypergradient

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]


class Recorder:
    """Records the verdict, the weights and the direction of each outer step; plots and saves them.

    It stores numbers. The only tensors it stores are those of the last hypergradient, for the
    cosine with the next one.

    Attributes:
        rows: one dict per outer step, all with the same keys. The entries of the weights are those
            of :class:`WeightSummary`, or ``None`` if the step was added without weights.

    Example:
        >>> import torch, reweight
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Linear(3, 1)
        >>> def losses(model, batch):
        ...     x, y = batch
        ...     return (model(x).squeeze(-1) - y).square()
        >>> rw = reweight.wrap(model, reweight.LossWeighter(), losses,
        ...                    outer_loss=lambda model, batch: losses(model, batch).mean())
        >>> recorder = Recorder()
        >>> batch, dev = ((torch.randn(8, 3), torch.randn(8)) for _ in range(2))
        >>> for step in range(3):                                  # in your loop
        ...     result = rw.outer_backward(batch, dev)
        ...     recorder.add(step, result, rw.weights(batch))
        >>> [round(row["weight_mean"], 3) for row in recorder.rows]
        [1.0, 1.0, 1.0]
    """

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self._previous: dict[str, Tensor] | None = None

    def add(self, step: int, result: Hypergradient, weights: Tensor | None = None) -> None:
        """Record one outer step.

        Args:
            step: the step number of your loop, the horizontal axis of the plots.
            result: what ``rw.outer_backward`` or ``rw.hypergradient`` returned.
            weights: ``[B]``, as ``rw.weights(batch)`` returns them.

        Raises:
            TypeError: ``result`` is not a ``Hypergradient``.
            ValueError: ``weights`` are not finite or not of shape ``[B]``.
        """
        if not isinstance(result, Hypergradient):
            raise TypeError(
                f"result must be the Hypergradient that rw.outer_backward or rw.hypergradient "
                f"returned, got {type(result).__name__}"
            )
        summary = None if weights is None else WeightSummary.of(weights)
        info = result.info
        row: Row = {
            "step": step,
            "hypergradient_norm": norm(result.grads),
            "cosine_with_previous": None,
            "relative_residual": info.relative_residual,
            "error_estimate": info.error_estimate,
            "num_hvps": info.num_hvps,
            "curvature": info.curvature,
            "smallest_curvature": info.smallest_curvature,
            "status": info.status.name,
            "trustworthy": info.trustworthy,
            "hvp_mode": info.hvp_mode,
            "helpful_share": _known(float((result.influence < 0).double().mean())),
        }
        if self._previous is not None:
            row["cosine_with_previous"] = _known(cosine(self._previous, result.grads))
        for name in ("mean", "std", "smallest", "largest", "effective_share", "entropy"):
            row[f"weight_{name}"] = None if summary is None else _known(getattr(summary, name))
        self.rows.append(row)
        self._previous = {name: g.detach().clone() for name, g in result.grads.items()}

    def summary(self) -> str:
        """A summary of all steps in a few lines."""
        if not self.rows:
            return "no outer steps were recorded"
        first, last = self.rows[0], self.rows[-1]
        counts: dict[str, int] = {}
        for row in self.rows:
            counts[row["status"]] = counts.get(row["status"], 0) + 1
        endings = ", ".join(
            f"{count} {name.lower().replace('_', ' ')}" for name, count in counts.items()
        )
        if all(map(as_chosen, self.rows)):
            endings += ", as chosen"
        else:
            endings += f"; {sum(row['trustworthy'] for row in self.rows)} of them exact"
        angles = [c for row in self.rows if (c := row["cosine_with_previous"]) is not None]
        lines = [
            f"{len(self.rows)} outer steps, {first['step']} to {last['step']}; solves: {endings}",
            f"hypergradient norm {first['hypergradient_norm']:.3g} in the first step, "
            f"{last['hypergradient_norm']:.3g} in the last",
        ]
        if angles:
            mean = sum(angles) / len(angles)
            lines[-1] += f"; mean cosine of consecutive hypergradients {mean:.2f}"
        if last["weight_mean"] is not None:
            lines.append(
                f"weights in the last step: mean {last['weight_mean']:.3g}, from "
                f"{last['weight_smallest']:.3g} to {last['weight_largest']:.3g}"
            )
            if last["weight_effective_share"] is not None:
                lines[-1] += (
                    f"; effective share of the batch {100.0 * last['weight_effective_share']:.0f} %"
                )
        return "\n".join(lines)

    def save(self, path: str | Path) -> None:
        """Write the rows to a ``.csv`` or ``.json`` file, atomically.

        Values that are unknown or not finite are empty in csv and ``null`` in json.

        Raises:
            ValueError: ``path`` has another extension.
            FileNotFoundError: the folder does not exist.
        """
        path = Path(path)
        writers: dict[str, Callable[[TextIO, list[Row]], None]] = {
            ".csv": _write_csv,
            ".json": _write_json,
        }
        if path.suffix.lower() not in writers:
            raise ValueError(
                f"path={str(path)!r}: the extension must be .csv or .json; to draw, use plot(path)"
            )
        rows = [
            {
                n: None if isinstance(v, float) and not math.isfinite(v) else v
                for n, v in row.items()
            }
            for row in self.rows
        ]
        # An ordinary file in the same folder: it gets the default permissions, unlike a tempfile.
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("w", newline="", encoding="utf-8") as file:
                writers[path.suffix.lower()](file, rows)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def plot(self, path: str | Path | None = None) -> Figure:
        """Weights, residuals, curvatures and directions over the outer steps.

        Args:
            path: also write the plot to this file; the extension selects the format.

        Returns:
            The figure.

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: nothing was recorded.
        """
        return plot_rows(self.rows, path)

    def state_dict(self) -> dict[str, Any]:
        """The state to save, so that recording can continue later."""
        return {"version": 1, "rows": [dict(row) for row in self.rows], "previous": self._previous}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a state that :meth:`state_dict` returned.

        Raises:
            ValueError: ``state`` is not such a state.
        """
        if not isinstance(state, Mapping) or state.get("version") != 1 or "rows" not in state:
            raise ValueError("this is not a state of a Recorder (version 1)")
        self.rows = [dict(row) for row in state["rows"]]
        self._previous = state["previous"]


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _write_csv(file: TextIO, rows: list[Row]) -> None:
    writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else ["step"])
    writer.writeheader()
    writer.writerows(rows)


def _write_json(file: TextIO, rows: list[Row]) -> None:
    json.dump(rows, file, indent=1, allow_nan=False)
    file.write("\n")
