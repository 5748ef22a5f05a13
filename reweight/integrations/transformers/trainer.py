"""The Trainer that learns weights."""

from __future__ import annotations

import os
from collections import deque
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

import reweight
from reweight.integrations._dev_batches import DevBatches
from reweight.integrations._processes import data_parallel, through
from reweight.integrations.transformers.batches import KeepColumn, dev_batches
from reweight.integrations.transformers.losses import (
    SHIPPED,
    LossesFn,
    causal_lm_losses,
    num_losses,
    rows,
)
from reweight.integrations.transformers.parts import Part, Scaled, parts_of
from reweight.integrations.transformers.problem import OuterLoss, StatedLosses
from reweight.integrations.transformers.refusals import LOOKUPS, check_arguments, check_trainer
from reweight.weighters import compares_samples

FILE = "reweight.pt"  # in a checkpoint of the Trainer
# Weights that are logged one by one: more are not read by anybody.
_LOGGED_WEIGHTS = 20
# What weighters recommend for Adam: those that look weights up, and all others.
_RATE_OF_LOOKUPS, _RATE = 5e-2, 1e-3


@dataclass(frozen=True)
class OuterArguments:
    """When outer steps are made, and by which learning rate.

    Args:
        every: an outer step is made at each ``every``-th optimizer step.
        warmup_steps: optimizer steps before the first outer step.
        lr: of Adam, which moves the weighter's parameters; default 5e-2 for a ``GroupWeighter`` or
            ``TableWeighter``, and 1e-3 for any other weighter.

    Raises:
        ValueError: a value out of range.

    Example:
        >>> outer = OuterArguments(every=10, warmup_steps=5)
        >>> [step for step in range(30) if outer.due(step)]
        [5, 15, 25]
    """

    every: int = 10
    warmup_steps: int = 0
    lr: float | None = None

    def __post_init__(self) -> None:
        positive = self.lr is None or self.lr > 0
        if self.every < 1 or self.warmup_steps < 0 or not positive:
            raise ValueError(
                f"{self}: every must be at least 1, warmup_steps at least 0, and lr above 0"
            )

    def due(self, step: int) -> bool:
        """Whether an outer step is made at the ``step``-th optimizer step, counted from 0."""
        return step >= self.warmup_steps and (step - self.warmup_steps) % self.every == 0


class ReweightTrainer(Trainer):  # type: ignore[misc]  # a class of an extra
    """A ``Trainer`` that learns a weight per sample, per token or per source of the data.

    It is a mixin as well: ``class Mine(ReweightTrainer, SFTTrainer)`` trains as ``SFTTrainer``
    does, with weights. The loss of evaluation stays the model's own. Weights start at 1, where the
    training loss is that of the ``Trainer``.

    With gradient accumulation, an outer step uses all micro-batches of an optimizer step, and the
    result is that of one large batch: for first-order steps exactly, while other solvers use the
    Hessian of each micro-batch for itself. Several processes that ``torchrun`` or ``accelerate
    launch`` start are one large batch too, with equal weights in all of them.

    Each checkpoint holds ``reweight.pt``: the weighter, its optimizer and the order of the dev set.
    Training logs hold ``weight_mean`` of the last batch, ``weight_0`` ... of a ``GroupWeighter``,
    and the ``hypergradient_residual`` where a solver has one.

    Args:
        *args: as for the ``Trainer``.
        weighter: computes the weights, and is trained too.
        dev_dataset: what the weights are to make better, a map-style data set with the columns of
            the training set (``group_column`` is not needed); or the key of such an entry in
            ``eval_dataset``, where the trainer prepares it, as ``SFTTrainer`` does. Batches have
            ``per_device_eval_batch_size`` samples, others in each process. Do not evaluate on it.
        losses: ``(model, batch, groups) -> Losses`` or a tensor ``[B]``, such as
            :func:`causal_lm_losses`. With gradient accumulation or several processes, one of your
            own must return one loss per row of the batch.
        group_column: the column that the weighter reads, as ``groups``: ids of the sources from 0
            for a ``GroupWeighter``, of the samples for a ``TableWeighter``. The model does not see
            it, and ``remove_unused_columns`` leaves it.
        weight_column: a column of weights that are known; then there is no ``weighter``.
        outer_args: when outer steps are made, and their learning rate.
        hypergradient: how; default ``ImplicitHypergradient(Identity())``, a first-order step. It
            needs no second derivatives, which cost a language model several times the memory.
        **kwargs: as for the ``Trainer``.

    Attributes:
        weighter: as given, on the device of the Trainer.
        outer_optimizer: Adam, of the weighter's parameters.

    Raises:
        ValueError: arguments that contradict each other, or that it cannot honour.
        NotImplementedError: more than one GPU in a process, DeepSpeed or FSDP.
    """

    data_collator: Any
    model_accepts_loss_kwargs: bool

    def __init__(
        self,
        *args: Any,
        weighter: reweight.SampleWeighter | None = None,
        dev_dataset: Any = None,
        losses: LossesFn = causal_lm_losses,
        group_column: str | None = None,
        weight_column: str | None = None,
        outer_args: OuterArguments | None = None,
        hypergradient: reweight.ImplicitHypergradient | None = None,
        **kwargs: Any,
    ) -> None:
        check_arguments(weighter, dev_dataset, group_column, weight_column)
        self._column = weight_column or group_column
        super().__init__(*args, **kwargs)
        check_trainer(self)
        self.weighter = weighter
        self.outer_args = outer_args or OuterArguments()
        self.hypergradient = hypergradient or reweight.ImplicitHypergradient(reweight.Identity())
        averages = self.args.gradient_accumulation_steps * self.args.world_size > 1
        self._losses = StatedLosses(losses, self._column, averages and losses not in SHIPPED)
        self._items = SHIPPED.get(losses, rows)
        self._reweighted: reweight.Reweighted | None = None
        self._last_weights: Tensor | None = None
        self._last_info: reweight.SolveInfo | None = None
        self._dev_batch: Any = None  # of the outer step that is being made
        self._parts: deque[Part] = deque()  # of the micro-batches that are to come
        self._part = Part()
        self._is_compared = losses not in SHIPPED
        if self._column is not None:
            self.data_collator = KeepColumn(self.data_collator, self._column)
        if weighter is not None:
            weighter.to(self.args.device)
            rate = _RATE_OF_LOOKUPS if isinstance(weighter, LOOKUPS) else _RATE
            self.outer_optimizer = torch.optim.Adam(
                weighter.parameters(), lr=self.outer_args.lr or rate
            )
            self._dev_batches = self._batches_of(dev_dataset)

    # -- one step --------------------------------------------------------------------------------

    @property
    def reweighted(self) -> reweight.Reweighted:
        """The wrapped model, once the training has begun."""
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)  # as accelerate wraps it
        if self.weighter is None or optimizer is None:
            raise ValueError("there is no weighter, or no optimizer before the training has begun")
        known = self._reweighted
        if (
            known is None
            or known.model is not self.model
            or known.problem.optimizers[0] is not optimizer
        ):
            known = reweight.wrap(
                self.model,
                self.weighter,
                self._losses,
                OuterLoss(self._losses),
                optimizer,
                self.hypergradient,
            )
            self._reweighted = known
        return known

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """As that of the ``Trainer``, with an outer step before it where one is due."""
        self._part = self._parts.popleft() if self._parts else Part()
        due = self.weighter is not None and self.outer_args.due(self.state.global_step)
        if due:
            model.train()
            self._outer_backward(self._prepare_inputs(inputs))
        # compute_loss divides by the items of all micro-batches: the Trainer must not do it again.
        accepts, self.model_accepts_loss_kwargs = self.model_accepts_loss_kwargs, True
        try:
            loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        finally:
            self.model_accepts_loss_kwargs = accepts
        if due and self.accelerator.sync_gradients:
            self.outer_optimizer.step()
            self.outer_optimizer.zero_grad()
            self._dev_batch = None
        return loss

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The weighted loss of a micro-batch in training, the model's own in evaluation."""
        if not model.training:
            return super().compute_loss(
                model, self._without_column(inputs), return_outputs, num_items_in_batch
            )
        if return_outputs:
            raise ValueError("return_outputs=True is for evaluation: call model.eval() before")
        if not self._is_compared:
            self._compare(inputs)
            self._is_compared = True
        parallel = data_parallel(model, self.args.world_size)
        inner = model if parallel is None else parallel.module
        batch = self._scaled(inputs, self._part.scale)
        loss = through(parallel, lambda batch: self._weighted_loss(inner, batch), batch)
        return loss * self._part.training

    def _weighted_loss(self, model: Any, batch: Any) -> Tensor:
        """The mean of the weighted losses of a micro-batch, and its fixed part."""
        if self.weighter is None:
            losses = self._losses(model, batch)
            losses.check_finite()
            weights = losses.inputs.to(losses.weighted)
            mean = (weights * losses.weighted).sum() / max(len(weights), 1)
            loss: Tensor = mean + losses.fixed
        else:
            problem = self.reweighted.problem
            with problem.together() if compares_samples(self.weighter) else nullcontext():
                losses = self._losses(model, batch)
                losses.check_finite()
                with torch.no_grad():
                    weights = problem.weights(losses)
            loss = problem.inner_loss(losses, weights)
        self._last_weights = weights
        return loss

    def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As that of the ``Trainer``; the model does not see the column."""
        return super().prediction_step(model, self._without_column(inputs), *args, **kwargs)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, *args: Any) -> Any:
        """As that of the ``Trainer``; items are what the losses are a mean over."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, *args)
        if not batches:
            return batches, 0
        losses, device = self._losses.losses, self.args.device
        own = [x for one in batches for x in (self._items(one), num_losses(losses, one))]
        counts = torch.stack([torch.as_tensor(x, device=device) for x in own]).view(1, -1, 2)
        size, rank = self.args.world_size, self.args.process_index
        if size > 1:
            counts = self.accelerator.gather(counts)
        by_all = size > 1 and self.args.average_tokens_across_devices
        self._parts = deque(parts_of(counts, rank, by_all))
        return batches, (counts if by_all else counts[rank])[..., 0].sum()

    def _outer_backward(self, inputs: dict[str, Any]) -> None:
        """Add the hypergradient of a micro-batch, by its share of the whole, to ``.grad``."""
        parameters = list(self.reweighted.weighter.parameters())
        before = [p.grad for p in parameters]
        self.outer_optimizer.zero_grad()
        if self._dev_batch is None:
            self._dev_batch = self._next_dev_batch()
        batch = self._scaled(inputs, self._part.scale)
        result = self.reweighted.outer_backward(batch, self._dev_batch)
        for p, grad in zip(parameters, before, strict=True):
            if p.grad is not None:
                p.grad = p.grad * self._part.outer + (0 if grad is None else grad)
        self._last_info = result.info

    def _next_dev_batch(self) -> Any:
        """A dev batch, scaled so that its loss counts by its items."""
        problem = self.reweighted.problem
        with problem.together():
            batch = self._prepare_inputs(next(self._dev_batches))
            if problem.ranks is None:
                return batch
            own = float(self._items(batch)), float(rows(batch))
            counts = torch.tensor(problem.ranks.numbers(*own))[:, None].long()
        (part,) = parts_of(counts, problem.ranks.rank, by_all=True)
        return self._scaled(batch, float(part.scale))

    def _scaled(self, batch: dict[str, Any], scale: Tensor | float) -> Any:
        return batch if self.args.world_size < 2 else Scaled(batch, scale)

    def _compare(self, inputs: dict[str, Any]) -> None:
        """Raise where the mean of the losses is not the model's own loss: models may add to it."""
        batch = self._without_column(inputs)
        self.model.eval()
        with torch.no_grad():
            own = getattr(self.model(**batch), "loss", None)
            mean = self._losses(self.model, inputs).weighted.mean()
        self.model.train()
        if own is None:
            return
        # Half precision rounds logits to three digits.
        halves = self.accelerator.mixed_precision != "no" or self.model.dtype.itemsize < 4
        if not torch.isclose(own.float(), mean.float(), rtol=2e-2 if halves else 1e-3):
            raise ValueError(
                f"the mean of the losses is {mean:.4g}, and the model's own loss {own:.4g}: the "
                f"loss of {type(self.model).__name__} is another one than {self._losses.name}, or "
                "it adds a term, such as one that balances experts. Pass your own losses=(model, "
                "batch, groups) -> Losses(weighted=one loss per sequence, fixed=what is added)"
            )

    def call_model_init(self, trial: Any = None) -> Any:
        """As that of the ``Trainer``; not for the search of hyperparameters.

        Raises:
            NotImplementedError: in such a search, whose trials would share one weighter.
        """
        if trial is not None and self.weighter is not None:
            raise NotImplementedError(
                "hyperparameter_search would begin each trial with the weighter of the last one: "
                "make a new ReweightTrainer with a new weighter for each trial"
            )
        return super().call_model_init(trial)

    # -- data ------------------------------------------------------------------------------------

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if self._column is not None and self._column not in self._signature_columns:
            self._signature_columns.append(self._column)

    def _without_column(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in inputs.items() if k != self._column}

    def _batches_of(self, dataset: Any) -> DevBatches:
        if isinstance(dataset, str):
            known = self.eval_dataset if isinstance(self.eval_dataset, dict) else {}
            if dataset not in known:
                raise ValueError(
                    f"dev_dataset={dataset!r} is the name of an entry of eval_dataset, whose "
                    f"entries are {sorted(known)}: pass eval_dataset={{{dataset!r}: ...}}"
                )
            dataset = known[dataset]
        collator = self.data_collator
        if hasattr(dataset, "column_names"):
            dataset = self._remove_unused_columns(dataset, description="dev")
        else:
            collator = self._get_collator_with_removed_columns(collator, description="dev")
        args = self.args
        size = args.world_size
        return dev_batches(
            dataset, collator, size * args.eval_batch_size, args.seed, args.process_index, size
        )

    # -- checkpoints and logs --------------------------------------------------------------------

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.weighter is not None and self.args.should_save:
            state = {
                "reweighted": self.reweighted.state_dict(),
                "outer_optimizer": self.outer_optimizer.state_dict(),
                "dev_batches": self._dev_batches.state_dict(),
            }
            torch.save(state, os.path.join(output_dir, FILE))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or self.weighter is None:
            return
        path = os.path.join(checkpoint, FILE)
        if not os.path.isfile(path):
            raise FileNotFoundError(
                f"{path} is missing: the checkpoint was saved without a weighter, or with "
                "save_only_model=True. The training would continue with weights of 1; to do that, "
                "load the model from the checkpoint and start a new training"
            )
        state = torch.load(path, map_location=self.args.device, weights_only=True)
        self.reweighted.load_state_dict(state["reweighted"])
        self.outer_optimizer.load_state_dict(state["outer_optimizer"])
        self._dev_batches.load_state_dict(state["dev_batches"])

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As that of the ``Trainer``; the logs of training hold the weights too."""
        if "loss" in logs:
            logs = {**logs, **self._weight_logs()}
        super().log(logs, *args, **kwargs)

    def _weight_logs(self) -> dict[str, float]:
        found: dict[str, float] = {}
        if self._last_weights is not None and self._last_weights.numel():
            found["weight_mean"] = float(self._last_weights.mean())
        if isinstance(self.weighter, reweight.GroupWeighter):
            weights = self.weighter.table().tolist()
            if len(weights) <= _LOGGED_WEIGHTS:
                found.update((f"weight_{group}", w) for group, w in enumerate(weights))
        if self._last_info is not None and self._last_info.relative_residual is not None:
            found["hypergradient_residual"] = self._last_info.relative_residual
        return found
