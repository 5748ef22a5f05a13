"""What one client shows: outer steps, the check, an independent reference, and every warning."""

from __future__ import annotations

import inspect
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

import reweight
from benchmarks.catalogue.problems import relative_error
from benchmarks.clients._reference import Reference
from reweight import ConjugateGradient, ImplicitHypergradient


@dataclass(frozen=True)
class Client:
    """A model of another package, wrapped.

    Attributes:
        name: of the model.
        package: that it is from.
        rw: what ``reweight.wrap`` returned.
        losses: as given to it.
        outer_loss: as given to it.
        optimizer: as given to it.
        train: train batches, one for each step of training.
        dev: a dev batch.
        part: a small train batch and a small dev batch, for the check.
        damping: makes the linear system of the last train batch positive definite, for the
            comparison with the reference.
        checked: what the check is given in the place of ``rw``: fewer parameters.
    """

    name: str
    package: str
    rw: reweight.Reweighted
    losses: Callable[[Any, Any], Any]
    outer_loss: Callable[[Any, Any], torch.Tensor]
    optimizer: torch.optim.Optimizer
    train: Sequence[Any]
    dev: Any
    part: tuple[Any, Any]
    damping: float = 1.0
    checked: reweight.Reweighted | None = None


@dataclass
class Findings:
    """What one script found.

    Attributes:
        client: package, version, and name of the model.
        losses: what the script's ``losses`` returns.
        wrap: its call of ``reweight.wrap``.
        mode: of Hessian-vector products.
        num_hvps: of the default solver in an outer step.
        residual: its relative residual.
        message: the verdict of the outer step.
        check: the verdict of ``check_hypergradient``, or the error that it raised.
        seconds: of CPU time that the check took.
        setup_ok: of its report; ``None`` where it raised an error. So are the following.
        error: of the wrapped object's solver.
        exact_error: of an exact solve.
        damping: that the check added.
        advice: of the check.
        reference: difference of the float32 influence, solved with conjugate gradients, from the
            reference, relative to its size.
        warnings: all of them, in order.
        log: the lines of the logger ``"reweight"`` at level INFO, each once.
    """

    client: str
    losses: str
    wrap: str
    mode: str = ""
    num_hvps: int = 0
    residual: float | None = None
    message: str = ""
    check: str = ""
    seconds: float = 0.0
    setup_ok: bool | None = None
    error: float | None = None
    exact_error: float | None = None
    damping: float | None = None
    advice: str = ""
    reference: float | None = None
    warnings: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = []
        for name, value in asdict(self).items():
            values = value if isinstance(value, list) else [value]
            lines += [f"{name:12} {entry}" for entry in values]
        return "\n".join(lines)


def findings(script: Callable[[], Client]) -> Findings:
    """Make the client, train a little, then measure.

    Args:
        script: the function ``client`` of a script.
    """
    torch.set_num_threads(1)
    client = script()
    row = Findings(
        f"{client.package} {version(client.package)}, {client.name}",
        last_with("return ", client.losses),
        last_with("rw = ", script),
    )
    train(client)
    with listened(row, "outer step"):
        for _ in range(2):  # the first one also compares second derivatives
            info = client.rw.outer_backward(client.train[-1], client.dev).info
    row.mode, row.num_hvps, row.message = info.hvp_mode, info.num_hvps, info.message
    last = info.last_residual
    row.residual = info.relative_residual if last is None else last.value
    checked(client, row)
    row.reference = against_reference(client)
    return row


def train(client: Client) -> None:
    """An ordinary loop, in which ``rw.loss`` stands for the model's loss."""
    for batch in client.train:
        loss = client.rw.loss(batch)
        client.optimizer.zero_grad()
        loss.backward()
        client.optimizer.step()


def checked(client: Client, row: Findings) -> None:
    start = time.process_time()
    with listened(row, "check"):
        try:
            report = reweight.check_hypergradient(client.checked or client.rw, *client.part)
        except Exception as error:  # what users would see is a finding, too
            row.check = f"{type(error).__name__}: {error}"
        else:
            row.check, row.advice, row.setup_ok = report.verdict, report.advice, report.setup_ok
            row.error, row.exact_error = report.error, report.exact_error
            row.damping = report.damping
    row.seconds = time.process_time() - start


def against_reference(client: Client) -> float:
    """The relative error of the influence, by conjugate gradients in float32."""
    for module in client.rw.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # the reference would draw other masks
    batches = client.train[-1], client.dev
    solver = ConjugateGradient(max_steps=500, rtol=1e-6)
    strategy = ImplicitHypergradient(solver, damping=client.damping)
    ours = reweight.Reweighted(client.rw.problem, strategy).hypergradient(*batches)
    if not ours.info.trustworthy:
        raise RuntimeError(f"{client.name}, damping {client.damping:g}: {ours.info.message}")
    reference = Reference(
        client.rw.model, client.losses, client.outer_loss, client.optimizer
    ).influence(client.rw.weights(batches[0]), client.damping, *batches)
    return relative_error(ours.influence.double(), reference)


def last_with(start: str, function: Callable[..., Any]) -> str:
    """The last line of a function's code that starts so, without that start."""
    lines = [line.strip() for line in inspect.getsource(function).splitlines()]
    return [line.removeprefix(start) for line in lines if line.startswith(start)][-1]


@contextmanager
def listened(row: Findings, where: str) -> Iterator[None]:
    """Collect warnings and lines of the log."""
    logger = logging.getLogger("reweight")
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        row.warnings += [f"{where}, {w.category.__name__}: {w.message}" for w in caught]
        row.log += dict.fromkeys(f"{where}, log: {record.getMessage()}" for record in records)
