"""The Lightning callback makes the outer steps that a loop written by hand makes."""

from __future__ import annotations

import csv
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import reweight
from _support.problems import SigmoidWeights

lightning = pytest.importorskip("lightning")
from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402
from lightning.pytorch.loggers import CSVLogger  # noqa: E402

from reweight.integrations.lightning import ReweightCallback, ReweightMixin  # noqa: E402

ROOT = Path(__file__).parent.parent.parent
FEATURES, SAMPLES = 3, 48


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Lightning warns of few workers, of small logging intervals and of the like."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        yield


class Line(ReweightMixin, lightning.LightningModule):
    """A small regression; ``losses`` and ``outer_loss`` are all that weights need."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(FEATURES, 4), nn.Tanh(), nn.Linear(4, 1)).double()

    def losses(self, batch: Any) -> Tensor:
        x, y = batch
        return (self.net(x).squeeze(-1) - y).square()

    def outer_loss(self, batch: Any) -> Tensor:
        return self.losses(batch).mean()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.weighted_loss(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2, weight_decay=1e-3)


def samples(seed: int, n: int = SAMPLES) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, FEATURES, generator=generator, dtype=torch.float64)
    return x, torch.where(torch.arange(n) % 2 == 0, x[:, 0], -x[:, 0])


def train_loader(batch_size: int = 4) -> Any:
    return DataLoader(TensorDataset(*samples(1)), batch_size=batch_size)


class Jittered(Dataset[Any]):
    """Dev samples that are augmented with random numbers of the process."""

    def __init__(self) -> None:
        self.x, self.y = samples(2, 10)

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> Any:
        return self.x[i] + 0.01 * torch.randn(FEATURES, dtype=torch.float64), self.y[i]


def dev_loader() -> Any:
    return DataLoader(Jittered(), batch_size=4, shuffle=True)


def callback(
    dev: Any = None, weighter: type[reweight.SampleWeighter] | None = None, **options: Any
) -> ReweightCallback:
    torch.manual_seed(3)
    weighter = (weighter or reweight.LossWeighter)(8).double()
    outer_optimizer = torch.optim.Adam(weighter.parameters(), lr=1e-2)
    options = {"warmup_steps": 3, "every": 2} | options
    return ReweightCallback(weighter, outer_optimizer, dev or [samples(2)], **options)


def trainer(*callbacks: Any, **options: Any) -> Any:
    plain = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "max_epochs": 1,
    }
    return lightning.Trainer(callbacks=[*callbacks], **(plain | options))


def learned(*modules: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for module in modules for p in module.parameters()]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(map(torch.equal, first, second))


def fitted(
    module: Any = None, given: ReweightCallback | None = None, **options: Any
) -> list[Tensor]:
    """The parameters of the module and of the weighter after a training."""
    module, given = module or Line(), given or callback()
    trainer(given, **options).fit(module, train_loader())
    return learned(module, given.weighter)


def by_hand() -> list[Tensor]:
    module, other = Line(), callback()
    weighter, outer_optimizer = other.weighter, other.outer_optimizer
    optimizer = module.configure_optimizers()
    rw = reweight.wrap(module, weighter, optimizer=optimizer)
    for step, batch in enumerate(train_loader(), 1):
        optimizer.zero_grad()
        rw.loss(batch).backward()
        optimizer.step()
        if step in (5, 7, 9, 11):  # every second one after three
            outer_optimizer.zero_grad()
            rw.outer_backward(batch, samples(2))
            outer_optimizer.step()
    return learned(module, weighter)


class Manual(Line):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.weighted_loss(batch))
        optimizer.step()


class TwoOptimizers(Manual):
    """One for each layer: the Trainer counts two optimizer steps for each batch."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(self.weighted_loss(batch))
        for optimizer in self.optimizers():
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.Adam(layer.parameters(), lr=1e-2, weight_decay=1e-3)
            for layer in (self.net[0], self.net[2])
        ]


class HoldsTheWeighter(Line):
    """Its optimizer holds the weighter too, which weight decay must not reach."""

    def __init__(self, weighter: nn.Module) -> None:
        super().__init__()
        self.weighter = weighter


def test_automatic_optimization_is_the_loop_written_by_hand() -> None:
    assert same(fitted(), by_hand())


@pytest.mark.parametrize("module", [Manual, TwoOptimizers])
def test_manual_optimization_is_the_same(module: type[Line]) -> None:
    assert same(fitted(module()), by_hand())


def test_a_weighter_inside_the_module_is_the_same() -> None:
    given = callback()
    module = HoldsTheWeighter(given.weighter)
    trainer(given).fit(module, train_loader())
    assert same(learned(module.net, given.weighter), by_hand())


def test_functions_take_the_place_of_methods() -> None:
    class Bare(ReweightMixin, lightning.LightningModule):
        training_step = Line.training_step
        configure_optimizers = Line.configure_optimizers

        def __init__(self) -> None:
            super().__init__()
            self.net = Line().net

    given = callback(losses=Line.losses, outer_loss=lambda m, batch: Line.losses(m, batch).mean())
    assert same(fitted(Bare(), given), by_hand())


@pytest.mark.parametrize("module", [Line, None], ids=["automatic", "manual"])
def test_four_accumulated_batches_are_one_of_four_times_the_size(module: type[Line] | None) -> None:
    class InFours(Manual):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer: Any = self.optimizers()
            self.manual_backward(self.weighted_loss(batch) / 4)
            if batch_idx % 4 == 3:
                optimizer.step()
                optimizer.zero_grad()

    runs = []
    for size, options in ((4, {"accumulate_grad_batches": 4} if module else {}), (16, {})):
        # A weight of LossWeighter depends on the others of its micro-batch.
        given = callback(weighter=SigmoidWeights, warmup_steps=1, every=1)
        net = (module or InFours)() if size == 4 else Line()
        trainer(given, max_epochs=3, **options).fit(net, train_loader(size))
        assert given.steps == 9 and given.reweighted.problem.progress.steps == 8
        runs.append(learned(net, given.weighter))
    for accumulated, at_once in zip(*runs, strict=True):
        # Sums in another order: rounding, magnified by Adam's division by small gradients.
        assert torch.allclose(accumulated, at_once, rtol=1e-9, atol=1e-9)


def test_batches_of_a_validation_between_accumulated_ones_are_left_out() -> None:
    class Validated(Line):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("weighted", self.weighted_loss(batch))

    given, module = callback(warmup_steps=0, every=1), Validated()
    run = trainer(given, accumulate_grad_batches=4, val_check_interval=1)
    run.fit(module, train_loader(), train_loader(24))
    assert given.result.influence.shape == (16,) and "weighted" in run.callback_metrics


@pytest.mark.parametrize(("whole_step", "samples_used"), [(True, 16), (False, 4)])
def test_the_last_micro_batch_alone_serves_where_memory_is_short(
    whole_step: bool, samples_used: int
) -> None:
    given = callback(warmup_steps=0, every=1, whole_step=whole_step)
    trainer(given, accumulate_grad_batches=4).fit(Line(), train_loader())
    assert given.reweighted.problem.progress.steps == 3
    assert given.result.influence.shape == (samples_used,)


def test_outer_steps_are_made_without_autocast() -> None:
    seen: dict[str, set[torch.dtype]] = {"training": set(), "outer": set()}

    class Watched(Line):
        def __init__(self) -> None:
            super().__init__()
            self.net.float()

        def losses(self, batch: Any) -> Tensor:
            out = self.net(batch[0].float())
            seen["outer" if watching else "training"].add(out.dtype)
            return (out.float().squeeze(-1) - batch[1].float()).square()

    watching = False
    given = callback(warmup_steps=0, every=4)
    step = given._outer_step

    def watched(*args: Any) -> None:
        nonlocal watching
        watching = True
        step(*args)
        watching = False

    given._outer_step = watched  # type: ignore[method-assign]
    trainer(given, precision="bf16-mixed").fit(Watched(), train_loader())
    assert seen["training"] == {torch.bfloat16}
    assert seen["outer"] == {
        torch.float32,
        torch.float64,
    }  # which second derivatives are compared in


def test_parameters_in_half_precision_are_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"torch\.bfloat16.*bf16-mixed"):
        fitted(precision="bf16-true")


# -- checkpoints -----------------------------------------------------------------------------------


class Resumable:
    """A loader that Lightning can resume within an epoch, as those of torchdata."""

    def __init__(self) -> None:
        self.batches, self.position = list(train_loader()), 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        self.position %= len(self)  # an epoch ends without a further call
        while self.position < len(self):
            self.position += 1
            yield self.batches[self.position - 1]

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


@pytest.mark.parametrize("half", [24, 18], ids=["between epochs", "within an epoch"])
def test_a_resumed_training_is_bit_for_bit_one_that_was_not_interrupted(
    tmp_path: Path, half: int
) -> None:
    whole, module = callback(dev_loader()), Line()
    trainer(whole, max_epochs=4).fit(module, Resumable())
    expected = learned(module, whole.weighter)

    first = callback(dev_loader())
    keep = ModelCheckpoint(tmp_path, filename="half", every_n_train_steps=half)
    run = trainer(first, keep, max_steps=half, max_epochs=4, enable_checkpointing=True)
    run.fit(Line(), Resumable())
    assert first.steps == half

    # Nothing of the first half is left: other parameters, and other random numbers.
    module, second = Line(), callback(dev_loader())
    for p in (*module.parameters(), *second.weighter.parameters()):
        nn.init.normal_(p)
    torch.manual_seed(99)
    run = trainer(second, max_epochs=4)
    # weights_only: the state of the callback is of tensors and plain numbers.
    run.fit(module, Resumable(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert second.steps == whole.steps == 48
    assert same(learned(module, second.weighter), expected)


def test_a_second_training_goes_on_where_the_first_one_ended() -> None:
    given, module = callback(), Line()
    one = trainer(given, max_epochs=1)
    one.fit(module, train_loader())
    one.fit_loop.max_epochs = 2
    one.fit(module, train_loader())
    assert given.steps == 24


# -- what is said ----------------------------------------------------------------------------------


def test_loggers_get_the_mean_weight_and_the_residual(tmp_path: Path) -> None:
    given = callback(every=3, hypergradient=reweight.ImplicitHypergradient(verdict_every=1))
    logger = CSVLogger(tmp_path)
    run = trainer(given, logger=logger, log_every_n_steps=4)
    run.fit(Line(), train_loader())
    with open(Path(logger.log_dir) / "metrics.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2  # steps 8 and 12; in step 4 there was nothing to write
    residual = given.result.info.relative_residual
    assert float(rows[-1]["reweight/residual"]) == pytest.approx(residual, rel=1e-6)  # float32
    expected = float(given.reweighted.weights(list(train_loader())[11]).mean())
    assert float(rows[-1]["reweight/weight_mean"]) == pytest.approx(expected, rel=1e-6)
    assert float(run.callback_metrics["reweight/weight_mean"]) == pytest.approx(expected, rel=1e-6)


def test_what_losses_log_is_not_logged_in_outer_steps(tmp_path: Path) -> None:
    class Logs(Line):
        def losses(self, batch: Any) -> Tensor:
            found = super().losses(batch)
            self.log("size", float(len(found)), on_step=False, on_epoch=True)
            return found

    run = trainer(callback(), logger=CSVLogger(tmp_path))
    run.fit(Logs(), train_loader())
    assert float(run.callback_metrics["size"]) == 4.0  # and not that of dev batches


def test_a_training_step_without_weights_is_refused() -> None:
    class Forgets(Line):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.losses(batch).mean()

    with pytest.raises(RuntimeError, match=r"training_step.*weighted_loss"):
        fitted(Forgets())


class Uncounted(Manual):
    """Steps an optimizer behind Lightning's back."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        self.manual_backward(self.weighted_loss(batch))
        optimizer.step()


@pytest.mark.parametrize(
    ("module", "options", "match"),
    [
        (Line, {"warmup_steps": 11}, r"follows optimizer step 13 .* 12 were counted"),
        (Uncounted, {}, r"0 were counted.*self\.optimizers\(\)"),
    ],
)
def test_a_training_without_outer_steps_is_warned_of(
    module: type[Line], options: Any, match: str
) -> None:
    with pytest.warns(UserWarning, match=match):
        fitted(module(), callback(**options))


def test_a_trainer_without_the_callback_is_refused() -> None:
    with pytest.raises(RuntimeError, match="0 ReweightCallbacks"):
        trainer().fit(Line(), train_loader())


def test_a_loss_outside_of_a_training_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"trainer\.fit"):
        callback().loss(samples(1))


def test_a_module_without_losses_is_refused() -> None:
    class Bare(ReweightMixin, lightning.LightningModule):
        training_step = Line.training_step
        configure_optimizers = Line.configure_optimizers

        def __init__(self) -> None:
            super().__init__()
            self.net = Line().net

    with pytest.raises(TypeError, match=r"Bare has no method losses\(batch\)"):
        fitted(Bare())


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"every": 0}, ValueError, "every=0"),
        ({"warmup_steps": -1}, ValueError, "warmup_steps=-1"),
        ({"dev": iter([samples(2)])}, TypeError, r"dev_loader.*\[dev_batch\]"),
    ],
)
def test_bad_arguments_are_named(change: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        callback(**change)


def test_an_outer_optimizer_of_another_weighter_is_refused() -> None:
    other = torch.optim.Adam(reweight.LossWeighter().parameters())
    with pytest.raises(ValueError, match="outer_optimizer holds no parameter of the weighter"):
        ReweightCallback(reweight.LossWeighter(), other, [samples(2)], warmup_steps=0)


def test_a_weighter_that_copies_of_this_process_learn_is_warned_of() -> None:
    # An error is the only thing that comes back from them.
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "the training runs in copies of this process")
        with pytest.raises(Exception, match="read it from a checkpoint"):
            trainer(callback(), strategy="ddp_fork").fit(Line(), train_loader())


@pytest.mark.slow
def test_pytorch_lightning_alone_serves_as_well() -> None:
    pytest.importorskip("pytorch_lightning")
    script = """
import torch, reweight, pytorch_lightning
from reweight.integrations.lightning import ReweightCallback, ReweightMixin
class Line(ReweightMixin, pytorch_lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.line = torch.nn.Linear(2, 1)
    def losses(self, batch):
        return (self.line(batch[0]).squeeze(-1) - batch[1]).square()
    def outer_loss(self, batch):
        return self.losses(batch).mean()
    def training_step(self, batch, batch_idx):
        return self.weighted_loss(batch)
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
data = torch.utils.data.TensorDataset(torch.randn(24, 2), torch.randn(24))
weighter = reweight.LossWeighter()
outer = torch.optim.Adam(weighter.parameters(), lr=1e-3)
callback = ReweightCallback(weighter, outer, [data[:10]], warmup_steps=2, every=2)
pytorch_lightning.Trainer(max_epochs=1, callbacks=[callback], logger=False, accelerator="cpu",
    enable_checkpointing=False, enable_progress_bar=False).fit(
    Line(), torch.utils.data.DataLoader(data, batch_size=4))
print("outer steps", callback.reweighted.problem.progress.steps)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert "outer steps 2" in done.stdout, done.stderr
