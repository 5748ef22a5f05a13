"""The numbers of a ``Recorder`` in TensorBoard, Weights & Biases, MLflow and the like."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from reweight.diagnostics import Recorder


def log_recorder(
    writer: Any, recorder: Recorder, weights: Tensor | None = None, *, prefix: str = "reweight/"
) -> None:
    """Write the last outer step that a :class:`reweight.diagnostics.Recorder` holds.

    Numbers that are unknown in this step are left out, such as a residual that was not measured.
    The step is that of ``recorder.add``.

    Args:
        writer: one of

            - a ``SummaryWriter`` of TensorBoard, or what has its ``add_scalar``; it also gets a
              histogram of the weights;
            - what has ``log_metrics(numbers, step)``: the module ``mlflow``, a logger of
              Lightning;
            - what has ``log(numbers, step=step)``: a run of Weights & Biases, an ``Accelerator``.
        recorder: at least one outer step was added to it.
        weights: ``[B]``, the weights of the batch, for the histogram.
        prefix: of the names of the numbers.

    Raises:
        TypeError: ``writer`` is none of these.
        ValueError: nothing was recorded.

    Example:
        >>> import torch, reweight
        >>> from reweight.integrations.logging import log_recorder
        >>> _ = torch.manual_seed(0)
        >>> model, weighter = torch.nn.Linear(3, 1), reweight.LossWeighter()
        >>> def losses(model, batch):
        ...     return (model(batch[0]).squeeze(-1) - batch[1]).square()
        >>> rw = reweight.wrap(model, weighter, losses, lambda m, batch: losses(m, batch).mean())
        >>> batch, dev = ((torch.randn(8, 3), torch.randn(8)) for _ in range(2))
        >>> class Run:                                       # stands for a run of W&B
        ...     def log(self, numbers, step):
        ...         print(step, numbers["reweight/weight_mean"], numbers["reweight/num_hvps"])
        >>> recorder = reweight.diagnostics.Recorder()
        >>> recorder.add(5, rw.outer_backward(batch, dev), rw.weights(batch))
        >>> log_recorder(Run(), recorder)
        5 1.0 3.0
    """
    write = _writing(writer)
    if not recorder.rows:
        raise ValueError("no outer step was recorded: call recorder.add(step, result) first")
    row = recorder.rows[-1]
    write({prefix + name: x for name, x in _numbers(row).items()}, row["step"])
    if weights is not None and hasattr(writer, "add_histogram"):
        writer.add_histogram(f"{prefix}weights", weights.detach(), row["step"])


def _writing(writer: Any) -> Callable[[dict[str, float], int], None]:
    """How the writer takes numbers by name, at a step."""

    def scalars(numbers: dict[str, float], step: int) -> None:
        for name, number in numbers.items():
            writer.add_scalar(name, number, step)

    if hasattr(writer, "add_scalar"):
        return scalars
    if hasattr(writer, "log_metrics"):
        return lambda numbers, step: writer.log_metrics(numbers, step=step)
    if hasattr(writer, "log") and not isinstance(writer, (logging.Logger, logging.LoggerAdapter)):
        return lambda numbers, step: writer.log(numbers, step=step)
    raise TypeError(
        f"writer is a {type(writer).__name__}, which has none of add_scalar (TensorBoard), "
        "log_metrics(numbers, step) (MLflow, Lightning) and log(numbers, step=) (Weights & "
        "Biases, Accelerate); recorder.rows[-1] is a dict of the numbers"
    )


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of an outer step that are known; what is true or false becomes 1 or 0."""
    known = ((n, x) for n, x in row.items() if n != "step" and isinstance(x, (bool, int, float)))
    return {name: float(x) for name, x in known if math.isfinite(x)}
