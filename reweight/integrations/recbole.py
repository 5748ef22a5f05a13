"""RecBole's trainer with weights that are learned, and with weights that are known.

RecBole 1.2.1 is older than its dependencies; the extra ``recbole`` has versions that it runs with.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from recbole.data.dataloader import FullSortEvalDataLoader, NegSampleEvalDataLoader
from recbole.data.interaction import Interaction
from recbole.data.utils import get_dataloader
from torch import Tensor

from reweight.hypergradient import Hypergradient, ImplicitHypergradient
from reweight.integrations._recbole_losses import PerSampleLosses
from reweight.integrations._recbole_trainer import WeightedTrainer
from reweight.weighters import SampleWeighter
from reweight.wrapping import wrap

__all__ = ["FixedWeightTrainer", "ReweightTrainer"]


class ReweightTrainer(WeightedTrainer):
    """RecBole's ``Trainer`` that learns a weight for each row of its batches.

    ``fit``, ``evaluate``, early stopping and checkpoints are RecBole's. Checkpoints also hold the
    weighter, its optimizer and the random states, so that a resumed run continues bit for bit.

    Args:
        config: RecBole's ``Config``.
        model: a model of RecBole. Its loss must be a sum of ``BPRLoss``, ``BCEWithLogitsLoss``,
            ``BCELoss``, ``CrossEntropyLoss`` or ``MSELoss`` over the rows of the batch and of
            penalties, or the model has a method ``losses(interaction) -> reweight.Losses``.
            ``RegLoss`` and ``EmbLoss`` get no weights.
        weighter: computes the weights; it is moved to the model's device.
        dev_data: the rows whose loss the weights are to reduce: the validation loader that
            ``data_preparation`` returns (its rows in train batches, with negatives of their own),
            an iterable of ``Interaction``, or one ``Interaction`` for every outer step.
        inputs: what the weighter reads: the name of a field such as ``"user_id"``, or a function of
            the interaction; ``None`` for the losses alone.
        warmup_epochs: epochs before the first outer step.
        stop_epoch: the first epoch without outer steps; ``None``: there is none. The influence of
            samples is clearest in the first epochs, so ``2`` and a new training with
            :class:`FixedWeightTrainer` is a good start.
        every: train batches from one outer step to the next.
        outer_lr: learning rate of the weighter's Adam; 1e-3 suits ``LossWeighter``, a table of
            some hundred groups about 0.02, see the page of this integration.
        hypergradient: how to solve; the default of :func:`reweight.wrap`.

    Attributes:
        rw: the wrapped model, for ``reweight.check_hypergradient`` and diagnostics.
        outer_optimizer: the weighter's optimizer.
        last_step: what the last outer step found, or ``None``.

    Raises:
        TypeError: ``dev_data`` holds no interactions.
        ValueError: a model that RecBole trains otherwise, a run on several processes, an epoch or a
            period out of range. In the first batch: a loss that can't be had per sample.

    Example::

        config = Config("BPR", "ml-100k")
        train, valid, test = data_preparation(config, create_dataset(config))
        model = BPR(config, train.dataset)
        weighter = reweight.GroupWeighter(model.n_users)
        trainer = ReweightTrainer(config, model, weighter, valid, inputs="user_id", outer_lr=0.02)
        trainer.fit(train, valid)
    """

    def __init__(
        self,
        config: Any,
        model: Any,
        weighter: SampleWeighter,
        dev_data: Any,
        *,
        inputs: str | Callable[[Interaction], Any] | None = None,
        warmup_epochs: int = 0,
        stop_epoch: int | None = None,
        every: int = 1,
        outer_lr: float = 1e-3,
        hypergradient: ImplicitHypergradient | None = None,
    ) -> None:
        super().__init__(config, model, PerSampleLosses(inputs))
        if warmup_epochs < 0 or every < 1:
            raise ValueError(
                f"warmup_epochs={warmup_epochs!r}, every={every!r}: epochs are counted from 0, and "
                "outer steps are at least one batch apart"
            )
        if stop_epoch is not None and stop_epoch <= warmup_epochs:
            raise ValueError(
                f"stop_epoch={stop_epoch!r} is not above warmup_epochs={warmup_epochs!r}, so no "
                "outer step would be made: leave stop_epoch out, or start earlier"
            )
        self._steps_in = range(warmup_epochs, self.epochs if stop_epoch is None else stop_epoch)
        self._every = every
        self._dev = _dev_batches(config, dev_data)
        self._dev_iterator: Iterator[Any] = iter(())
        self._batch = self._epoch = 0
        self.rw = wrap(
            model,
            weighter.to(self.device),
            self.losses,
            lambda model, batch: self.losses(model, batch).weighted.mean(),
            self.optimizer,
            hypergradient,
        )
        self.outer_optimizer = torch.optim.Adam(weighter.parameters(), lr=outer_lr)
        self.last_step: Hypergradient | None = None

    def weights(self, interaction: Interaction) -> Tensor:
        """The weights [B] of a batch, without gradient."""
        return self.rw.weights(interaction.to(self.device))

    def _loss(self, interaction: Interaction) -> Tensor:
        if self._epoch in self._steps_in and self._batch % self._every == 0:
            self.outer_optimizer.zero_grad()
            dev = next(self._dev_iterator).to(self.device)
            self.last_step = self.rw.outer_backward(interaction, dev)
            self.outer_optimizer.step()
        self._batch += 1
        return self.rw.loss(interaction)

    def _train_epoch(
        self, train_data: Any, epoch_idx: int, loss_func: Any = None, show_progress: bool = False
    ) -> Any:
        self._batch, self._epoch = 0, epoch_idx
        self._dev_iterator = _endless(self._dev)
        result = super()._train_epoch(train_data, epoch_idx, loss_func, show_progress)
        if self.last_step is not None and epoch_idx in self._steps_in:
            self.logger.info(f"reweight, last outer step of epoch {epoch_idx}: {self.last_step}")
        return result

    def _loaders(self) -> list[Any]:
        return [*super()._loaders(), self._dev]

    def _own_state(self) -> dict[str, Any]:
        return {"weights": self.rw.state_dict(), "outer": self.outer_optimizer.state_dict()}

    def _load_own_state(self, state: dict[str, Any]) -> None:
        self.rw.load_state_dict(state["weights"])
        self.outer_optimizer.load_state_dict(state["outer"])


class FixedWeightTrainer(WeightedTrainer):
    """RecBole's ``Trainer`` on a weighted mean, with weights that do not change.

    Args:
        config: RecBole's ``Config``.
        model: a model as for :class:`ReweightTrainer`.
        weights: ``interaction -> [B]``, at least 0, such as
            ``lambda rows: table[rows["user_id"]]``. Divide them by their mean over the training
            rows first: a mean of 2 doubles the loss beside its penalties.

    Raises:
        TypeError: ``weights`` can't be called.
        ValueError: as for :class:`ReweightTrainer`; in training, weights of a wrong shape, below 0
            or not finite.
    """

    def __init__(self, config: Any, model: Any, weights: Callable[[Interaction], Tensor]) -> None:
        super().__init__(config, model, PerSampleLosses(None))
        if not callable(weights):
            raise TypeError(
                f"weights is a {type(weights).__name__}: pass a function of the interaction, such "
                'as lambda rows: table[rows["user_id"]]'
            )
        self._weights = weights

    def _loss(self, interaction: Interaction) -> Tensor:
        losses = self.losses(self.model, interaction)
        weights = torch.as_tensor(self._weights(interaction)).to(losses.weighted).detach()
        if weights.shape != losses.weighted.shape:
            raise ValueError(
                f"weights returned shape {list(weights.shape)} for {len(interaction)} rows: "
                "return one weight per row of the interaction"
            )
        if not bool(((weights >= 0) & weights.isfinite()).all()):
            raise ValueError(
                f"weights returned {weights.min().item():.3g} to {weights.max().item():.3g}: "
                "weights must be finite and at least 0"
            )
        return losses.fixed + (weights * losses.weighted).mean()


def _dev_batches(config: Any, dev_data: Any) -> Iterable[Any]:
    """Train batches of dev rows."""
    if isinstance(dev_data, Interaction):
        return [dev_data]
    if isinstance(dev_data, (FullSortEvalDataLoader, NegSampleEvalDataLoader)):
        # A loader for evaluation sorts and pads; its rows and its sampler serve for training too.
        loader = get_dataloader(config, "train")
        made: Iterable[Any] = loader(config, dev_data.dataset, dev_data._sampler, shuffle=True)
        return made
    if isinstance(dev_data, Iterable) and not isinstance(dev_data, Iterator):
        return dev_data
    raise TypeError(
        f"dev_data is a {type(dev_data).__name__}: pass the loader that data_preparation returns "
        "for validation, an iterable of Interaction that can be started again, or an Interaction"
    )


def _endless(batches: Iterable[Any]) -> Iterator[Any]:
    """Batches, started again whenever they end."""
    for _ in itertools.count():
        empty = True
        for batch in batches:
            empty = False
            if not isinstance(batch, Interaction):
                raise TypeError(
                    f"dev_data gives a {type(batch).__name__}: its batches must be Interaction, as "
                    "those of RecBole's TrainDataLoader are"
                )
            yield batch
        if empty:
            raise ValueError("dev_data has no batch: give it at least one row")
