"""Learned weights inside a Lightning training: a callback, and a mixin for the module."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from reweight._problem import LossesFn, MicroBatches, OuterFn
from reweight.hypergradient import Hypergradient
from reweight.integrations._dev_batches import DevBatches
from reweight.integrations._lightning_names import BASES, nothing_logged
from reweight.integrations._micro_batches import over_micro_batches
from reweight.integrations._precision import warn_of_half_precision
from reweight.integrations._processes import data_parallel, mean_of_all
from reweight.weighters import SampleWeighter
from reweight.wrapping import Reweighted, wrap


class ReweightCallback(*BASES):  # type: ignore[misc]
    """Learns a weight per training sample while a Lightning ``Trainer`` trains.

    After every ``every``-th optimizer step that follows the warm-up, it makes an outer step: on the
    batches that ``training_step`` passed to :meth:`loss` for this optimizer step, and the next dev
    batch. The optimizers of the module are only read. Outer steps are computed in the precision of
    the parameters: mixed precision is off in them. Automatic and manual optimization and
    accumulated gradients are served, and several processes with ``strategy="ddp"``.

    A checkpoint of the Trainer holds the weighter, the outer optimizer, the position in
    ``dev_loader`` and the number of steps, so a resumed training makes the same outer steps.

    Args:
        weighter: learns the weights. It may be a part of the module; several processes then need
            ``strategy="ddp_find_unused_parameters_true"``.
        outer_optimizer: the optimizer of the weighter's parameters.
        dev_loader: the dev batches: a ``DataLoader``, or a list of batches. Of several processes,
            all get the same batches, or each its own part if it has a ``DistributedSampler``.
        warmup_steps: optimizer steps before the first outer step. A weighter with ``bounds`` needs
            some epochs of them: in the first steps every sample helps, and its weights would all
            run to the bound.
        every: optimizer steps between two outer steps.
        losses: ``(module, batch) -> Losses | Tensor [B]``; default ``module.losses(batch)``.
        outer_loss: ``(module, batch) -> Tensor []``; default ``module.outer_loss(batch)``, or
            without one the fixed part of the losses.
        whole_step: whether an outer step uses all batches whose gradients were accumulated, as one
            batch of their samples, or only the last one, which takes less memory.
        options: further arguments of :func:`reweight.wrap`, such as ``hypergradient``.

    Attributes:
        reweighted: the wrapped module, from the start of the training on.
        result: the :class:`reweight.Hypergradient` of the last outer step, with its influences.
        steps: the number of optimizer steps so far.

    Raises:
        TypeError: ``dev_loader`` can be read only once, or not at all.
        ValueError: ``every`` or ``warmup_steps`` out of range, an ``outer_optimizer`` that holds no
            parameter of the weighter.
        NotImplementedError: in ``trainer.fit``, if several processes train by another strategy than
            data parallelism, such as FSDP.

    Example:
        >>> import lightning, torch, reweight
        >>> from reweight.integrations.lightning import ReweightCallback, ReweightMixin
        >>> class Line(ReweightMixin, lightning.LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.line = torch.nn.Linear(2, 1)
        ...     def losses(self, batch):
        ...         return (self.line(batch[0]).squeeze(-1) - batch[1]).square()
        ...     def outer_loss(self, batch):
        ...         return self.losses(batch).mean()
        ...     def training_step(self, batch, batch_idx):
        ...         return self.weighted_loss(batch)
        ...     def configure_optimizers(self):
        ...         return torch.optim.SGD(self.parameters(), lr=0.1)
        >>> data = torch.utils.data.TensorDataset(torch.randn(24, 2), torch.randn(24))
        >>> loader = torch.utils.data.DataLoader(data, batch_size=4)
        >>> weighter = reweight.LossWeighter()
        >>> outer_optimizer = torch.optim.Adam(weighter.parameters(), lr=1e-3)
        >>> callback = ReweightCallback(
        ...     weighter, outer_optimizer, [data[:10]], warmup_steps=2, every=2)
        >>> trainer = lightning.Trainer(max_epochs=1, callbacks=[callback], logger=False,
        ...     accelerator="cpu", enable_checkpointing=False, enable_progress_bar=False,
        ...     enable_model_summary=False)
        >>> trainer.fit(Line(), loader)
        >>> callback.reweighted.problem.progress.steps, callback.steps
        (2, 6)
    """

    def __init__(
        self,
        weighter: SampleWeighter,
        outer_optimizer: Optimizer,
        dev_loader: Iterable[Any],
        *,
        warmup_steps: int = 0,
        every: int = 5,
        losses: LossesFn | None = None,
        outer_loss: OuterFn | None = None,
        whole_step: bool = True,
        **options: Any,
    ) -> None:
        if every < 1 or warmup_steps < 0:
            raise ValueError(
                f"every={every!r}, warmup_steps={warmup_steps!r}: optimizer steps between outer "
                "steps, at least 1, and before them, at least 0"
            )
        own = {id(p) for p in weighter.parameters()}
        if not any(id(p) in own for group in outer_optimizer.param_groups for p in group["params"]):
            raise ValueError(
                "outer_optimizer holds no parameter of the weighter, which would never change: "
                "torch.optim.Adam(weighter.parameters(), lr=1e-3)"
            )
        self.weighter, self.outer_optimizer = weighter, outer_optimizer
        self.every, self.warmup_steps, self.whole_step = every, warmup_steps, whole_step
        self.reweighted: Reweighted | None = None
        self.result: Hypergradient | None = None
        self.steps = 0
        self._dev = DevBatches(dev_loader)
        self._losses, self._outer_loss, self._options = losses, outer_loss, options
        self._batches: list[Any] | None = None  # of this optimizer step, if an outer step follows
        self._global_step = 0
        self._shown: dict[str, float] = {}
        self._loaded: Mapping[str, Any] | None = None
        self._made_in = os.getpid()

    def loss(self, batch: Any) -> Tensor:
        """The weighted loss of a train batch, for ``training_step`` to return.

        Raises:
            RuntimeError: no training has begun.
        """
        if self.reweighted is None:
            raise RuntimeError("the loss has weights only in trainer.fit(), which wraps the module")
        # Without gradients it is not training_step that calls; a closure may call several times.
        kept = self._batches if torch.is_grad_enabled() else None
        if kept is not None and not any(batch is known for known in kept):
            kept.append(batch)
        return self.reweighted.loss(batch)

    # -- hooks -----------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Wrap the module, on its device and with its optimizers."""
        data_parallel(trainer.strategy.model, trainer.world_size)
        self.weighter.to(pl_module.device)
        # Loading its own state takes an optimizer's tensors to the device of its parameters.
        self.outer_optimizer.load_state_dict(self.outer_optimizer.state_dict())
        self.reweighted = wrap(
            pl_module,
            self.weighter,
            over_micro_batches(self._losses, pl_module),
            self._outer_loss,
            trainer.optimizers or None,
            **self._options,
        )
        warn_of_half_precision(self.reweighted)
        self._dev.agree()
        if self._loaded is not None:
            self._restore(self._loaded)
        if os.getpid() != self._made_in and trainer.is_global_zero:
            warnings.warn(
                "the training runs in copies of this process (strategy='ddp_spawn', 'ddp_fork' or "
                "'ddp_notebook'), whose weighter does not come back when trainer.fit ends: read it "
                "from a checkpoint (checkpoint['callbacks']['ReweightCallback']['weighter']), or "
                "use strategy='ddp'",
                stacklevel=2,
            )

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Count optimizer steps from where the Trainer stands."""
        self._global_step, self._batches = trainer.global_step, None

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Collect batches if an outer step follows the next optimizer step."""
        after = self.steps + 1 - self.warmup_steps
        if self._batches is None and after > 0 and after % self.every == 0:
            self._batches = []

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Make an outer step if one is due, and log the last one."""
        if trainer.global_step != self._global_step:
            self._global_step, self.steps = trainer.global_step, self.steps + 1
            if self._batches is not None:
                batches, self._batches = self._batches, None
                with nothing_logged(pl_module):
                    self._outer_step(trainer, batches)
        if self._shown:
            # In every step, since loggers only write the values of every n-th step.
            pl_module.log_dict(self._shown, on_step=True, on_epoch=False, batch_size=1)

    def _outer_step(self, trainer: Any, batches: list[Any]) -> None:
        if not batches or self.reweighted is None:
            raise RuntimeError(
                "training_step returned a loss without weights: return "
                "self.weighted_loss(batch) of the ReweightMixin, or callback.loss(batch)"
            )
        used = batches if self.whole_step else batches[-1:]
        train = used[0] if len(used) == 1 else MicroBatches(tuple(used))
        dev = trainer.precision_plugin.convert_input(next(self._dev))
        self.outer_optimizer.zero_grad()
        dev = trainer.strategy.batch_to_device(dev)
        self.result = self.reweighted.outer_backward(train, dev)
        self.outer_optimizer.step()
        self.outer_optimizer.zero_grad()  # an optimizer of the module may hold the weighter too
        self._shown["reweight/weight_mean"] = mean_of_all(
            self.reweighted, self.reweighted.weights(train)
        )
        if (residual := self.result.info.relative_residual) is not None:
            self._shown["reweight/residual"] = residual

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Warn if the training ended before the first outer step."""
        if self.steps < self.warmup_steps + self.every:
            warnings.warn(
                f"no outer step was made: the first one follows optimizer step "
                f"{self.warmup_steps + self.every} (warmup_steps={self.warmup_steps}, "
                f"every={self.every}), and {self.steps} were counted. Train longer, or lower "
                "these. In manual optimization, step what self.optimizers() returns: Lightning "
                "counts no others",
                stacklevel=2,
            )

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Follow the module, which the Trainer takes back to the CPU."""
        self.weighter.cpu()
        self._batches = None

    # -- checkpoints -----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint of the Trainer holds: tensors and plain numbers."""
        return {
            "weighter": self.weighter.state_dict(),
            "outer_optimizer": self.outer_optimizer.state_dict(),
            "dev_batches": self._dev.state_dict(),
            "steps": self.steps,
            "shown": dict(self._shown),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume, once the weighter is on its device."""
        self._loaded = state_dict
        if self.reweighted is not None:
            self._restore(state_dict)

    def _restore(self, state: Mapping[str, Any]) -> None:
        self.weighter.load_state_dict(state["weighter"])
        self.outer_optimizer.load_state_dict(state["outer_optimizer"])
        self._dev.load_state_dict(state["dev_batches"])
        self.steps, self._shown = state["steps"], dict(state["shown"])
        self._loaded = None


class ReweightMixin:
    """Gives a ``LightningModule`` the weighted loss of the Trainer's :class:`ReweightCallback`."""

    def weighted_loss(self, batch: Any) -> Tensor:
        """The weighted loss of a train batch, for ``training_step`` to return.

        Raises:
            RuntimeError: the Trainer has no ``ReweightCallback``, or several.
        """
        trainer: Any = getattr(self, "trainer")  # noqa: B009 - of the LightningModule
        found = [each for each in trainer.callbacks if isinstance(each, ReweightCallback)]
        if len(found) != 1:
            raise RuntimeError(
                f"the Trainer has {len(found)} ReweightCallbacks, and the weights come from one: "
                "Trainer(callbacks=[ReweightCallback(...)])"
            )
        return found[0].loss(batch)
