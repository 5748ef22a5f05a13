"""Every kind of writer gets the numbers of the recorder, at its step."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

import reweight
from reweight.diagnostics import Recorder
from reweight.integrations.logging import log_recorder


def recorded(steps: int = 2) -> tuple[Recorder, torch.Tensor]:
    """A recorder after some outer steps, and the weights of the last one."""
    torch.manual_seed(0)
    model, weighter = torch.nn.Linear(3, 1).double(), reweight.LossWeighter(4).double()
    batch = torch.randn(8, 3, dtype=torch.float64), torch.randn(8, dtype=torch.float64)

    def losses(model: Any, batch: Any) -> torch.Tensor:
        return (model(batch[0]).squeeze(-1) - batch[1]).square()

    rw = reweight.wrap(model, weighter, losses, lambda model, batch: losses(model, batch).mean())
    recorder = Recorder()
    for step in range(10, 10 + steps):
        recorder.add(step, rw.hypergradient(batch, batch), rw.weights(batch))
    return recorder, rw.weights(batch)


class Run:
    """Stands for a run of Weights & Biases, which is not tested against."""

    def __init__(self) -> None:
        self.calls: list[tuple[dict[str, float], int]] = []

    def log(self, data: dict[str, float], step: int | None = None, commit: Any = None) -> None:
        assert step is not None and commit is None
        self.calls.append((data, step))


class MLflow(Run):
    """Stands for the module ``mlflow``, which is not tested against."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.calls.append((metrics, step or 0))


@pytest.mark.parametrize("kind", [Run, MLflow])
def test_a_run_gets_all_known_numbers_of_the_last_step(kind: type[Run]) -> None:
    recorder, weights = recorded()
    run = kind()
    log_recorder(run, recorder, weights, prefix="outer.")
    ((numbers, step),) = run.calls
    row = recorder.rows[-1]
    assert step == 11 and all(type(x) is float for x in numbers.values())
    assert numbers["outer.hypergradient_norm"] == row["hypergradient_norm"]
    assert numbers["outer.trustworthy"] == float(row["trustworthy"])
    # This one is sampled, and the second step is not among the samples.
    assert row["relative_residual"] is None and "outer.relative_residual" not in numbers
    left_out = {name for name in row if f"outer.{name}" not in numbers}
    assert left_out - {n for n, x in row.items() if x is None} == {"step", "status", "hvp_mode"}


def test_tensorboard_gets_scalars_and_a_histogram_of_the_weights(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    recorder, weights = recorded()
    with SummaryWriter(tmp_path) as writer:
        log_recorder(writer, recorder, weights)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    (event,) = events.Scalars("reweight/weight_mean")
    assert event.step == 11 and event.value == 1.0
    (histogram,) = events.Histograms("reweight/weights")
    assert histogram.step == 11 and histogram.histogram_value.num == len(weights)


def test_a_logger_of_lightning_serves(tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    from lightning.pytorch.loggers import CSVLogger

    recorder, weights = recorded()
    logger = CSVLogger(tmp_path)
    log_recorder(logger, recorder, weights)
    logger.save()
    names, values = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    written = dict(zip(names.split(","), values.split(","), strict=True))
    assert written["step"] == "11" and written["reweight/weight_mean"] == "1.0"


def test_the_trackers_of_accelerate_serve(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recorder, weights = recorded()
    accelerator = accelerate.Accelerator(cpu=True, log_with="tensorboard", project_dir=tmp_path)
    accelerator.init_trackers("run")
    log_recorder(accelerator, recorder, weights)
    accelerator.end_training()
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    (event,) = events.Scalars("reweight/weight_mean")
    assert event.step == 11 and event.value == 1.0


@pytest.mark.parametrize("writer", [logging.getLogger("reweight"), print, None])
def test_what_takes_no_numbers_is_refused(writer: Any) -> None:
    recorder, _ = recorded(1)
    with pytest.raises(TypeError, match=f"writer is a {type(writer).__name__}"):
        log_recorder(writer, recorder)


def test_a_recorder_without_steps_is_refused() -> None:
    with pytest.raises(ValueError, match=r"recorder\.add"):
        log_recorder(Run(), Recorder())
