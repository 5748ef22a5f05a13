"""Several seeds of one variant trained at once, for a device that one small model does not fill."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from cdr.common import ALONE, refuse, tensors_in, with_tensors
from cdr.data import CrossDomainData, PairBatch
from cdr.training.inner import inner_optimizer
from cdr.training.loop import Result, Training, run_epochs
from cdr.training.options import Options
from cdr.training.saves import Saves, usable

OnStep = Callable[[int, int, int, float], None]


def train_side_by_side(
    variant: str,
    data: CrossDomainData,
    options: Options,
    seeds: Sequence[int],
    *,
    saves: Saves | None = None,
    on_step: OnStep = lambda epoch, step, steps, best: None,
) -> list[Result]:
    """Train every seed as :func:`cdr.training.loop.train` does, in steps that they take together.

    The results are those of the seeds one by one, up to rounding: each has its own random streams,
    and a seed that has stopped takes no part in later epochs. An outer step belongs to one seed,
    and is taken for one after another. What is not finite is noticed at the end of the epoch, or
    by an outer step. A seed that has told no rows apart is trained once more, by itself.

    Args:
        variant: one for all, so that gradients reach the same parameters of every seed.
        data: one for all, which makes batches and embedding tables equally large.
        options: as for :func:`cdr.training.loop.train`.
        seeds: at least one.
        saves: As there, of one state for all seeds.
        on_step: As there; the best validation AUC is the mean over the seeds.

    Returns:
        The results in the order of ``seeds``.

    Raises:
        ValueError: as :func:`cdr.training.loop.train`, naming the seed; a model with buffers.
    """
    trainings = [Training(variant, data, options, seed) for seed in seeds]
    with usable(saves) as held:
        run_epochs(_Stack(trainings, options), ALONE, held, on_step)
    for place, training in enumerate(trainings):
        if training.collapsed:
            trainings[place] = training.again()
            run_epochs(trainings[place], ALONE, None, on_step)
    return [training.result() for training in trainings]


class _Stack:
    """The parameters of several trainings as one tensor [S, ...] each, and their optimizer.

    The parameters of the trainings' own modules become views of it: what works on one model
    (outer steps, scores, snapshots) reads and writes the stack. The trainings' own inner optimizers
    never step; the library reads the weight decay from them.

    Attributes:
        trainings: Those that are not done.
    """

    def __init__(self, trainings: list[Training], options: Options) -> None:
        for option in ("lazy_tables", "cuda_graphs"):
            if getattr(options.inner, option):
                refuse("inner", option, True, "it does not go with --stack-seeds; leave one out")
        self._all = self.trainings = trainings
        self._device = next(trainings[0].model.parameters()).device
        # Sum of the losses [S] of the epoch under way, and steps in it.
        self._total: Tensor | None = None
        self._done = 0
        self._modules: list[nn.Module] = [_Loss(training) for training in trainings]
        for name, _ in self._modules[0].named_buffers():
            raise ValueError(
                f"{name} is a buffer, and trainings side by side share none: train one by one"
            )
        own = [dict(module.named_parameters()) for module in self._modules]
        self._parameters: dict[str, Tensor] = {}
        for name, parameter in own[0].items():
            stacked = torch.stack([parameters[name].detach() for parameters in own])
            # The perceptrons move in outer steps only.
            inner = parameter.requires_grad and name.startswith("model.")
            self._parameters[name] = nn.Parameter(stacked, requires_grad=inner)
        self._share()
        inner_parameters = [p for p in self._parameters.values() if p.requires_grad]
        # Elementwise, and all have made equally many steps: one optimizer is as good as S.
        self._optimizer = inner_optimizer(inner_parameters, options.inner)

    @property
    def done(self) -> bool:
        """Whether there is no further epoch."""
        return not self.trainings

    @property
    def resting(self) -> bool:
        """Whether the state is all that the next step depends on: no batch is made ahead."""
        return self._total is None or all(
            training.sampler.state_dict()["position"] == self._done for training in self.trainings
        )

    def run_epoch(self, on_step: OnStep, after_step: Callable[[], None] | None = None) -> None:
        """Train all for one epoch, or for what is left of it, and let go of those that are done."""
        running = self.trainings
        epoch, steps = running[0].epoch, len(running[0].sampler)
        best = sum(training.best for training in self._all) / len(self._all)
        if self._total is None:
            self._total, self._done = torch.zeros(len(running), device=self._device), 0
        # strict=True, so that every sampler reaches the end of its epoch.
        for batches in zip(*(t.epoch_batches() for t in running), strict=True):
            self._total += self.step(batches)
            for training in running:
                training.after_step()
            self._done += 1
            on_step(epoch, self._done, steps, best)
            if after_step is not None:
                after_step()
        losses, self._total = (self._total / steps).tolist(), None
        for training, loss in zip(running, losses, strict=True):
            training.end_epoch(loss)
        self.keep_running()

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on; taken while resting."""
        return {
            "trainings": [training.state_dict() for training in self._all],
            "optimizer": self._optimizer.state_dict(),
            "total": None if self._total is None else self._total.clone(),
            "done": self._done,
        }

    def check_state(self, state: dict[str, Any], place: str) -> None:
        """ValueError if a state is not of the same trainings."""
        found = state.get("trainings", [])
        if len(found) != len(self._all):
            raise ValueError(f"{place} is of {len(found)} seeds and not of {len(self._all)}")
        for training, own in zip(self._all, found, strict=True):
            training.check_state(own, place)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        for training, own in zip(self._all, state["trainings"], strict=True):
            training.load_state_dict(own)
        self.keep_running()
        self._optimizer.load_state_dict(state["optimizer"])
        total: Tensor | None = state["total"]
        self._total = None if total is None else total.to(self._device)
        self._done = state["done"]

    def step(self, batches: Sequence[PairBatch]) -> Tensor:
        """One inner step of each training on its batch; the losses [S] before it."""
        like, module = batches[0], self._modules[0]

        def loss(parameters: dict[str, Tensor], tensors: list[Tensor]) -> Tensor:
            result: Tensor = functional_call(module, parameters, (with_tensors(like, tensors),))
            return result

        tensors = [torch.stack(t) for t in zip(*map(tensors_in, batches), strict=True)]
        losses = torch.vmap(loss)(self._parameters, tensors)
        self._optimizer.zero_grad()
        # Each term of the sum reaches its own slice of the parameters only.
        losses.sum().backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return losses.detach()

    def keep_running(self) -> None:
        """Remove the trainings that are done."""
        places = [i for i, training in enumerate(self.trainings) if not training.done]
        if len(places) == len(self.trainings):
            return
        self.trainings = [self.trainings[i] for i in places]
        self._modules = [self._modules[i] for i in places]
        for parameter in self._parameters.values():
            parameter.grad, parameter.data = None, parameter.data[places]
        for state in self._optimizer.state.values():
            for name, value in state.items():
                if value.ndim:  # the count of steps is common to all
                    state[name] = value[places]
        self._share()

    def _share(self) -> None:
        for place, module in enumerate(self._modules):
            for name, parameter in module.named_parameters():
                parameter.data = self._parameters[name].data[place]


class _Loss(nn.Module):
    """The inner loss of a training as a function of all its parameters, without a look at values.

    ``torch.vmap`` cannot branch on them, as the library's checks do, and a device would have to be
    waited for.
    """

    def __init__(self, training: Training) -> None:
        super().__init__()
        self.model = training.model
        self.weighter = training.learner.rw.weighter if training.learner else None
        self._losses = training.learner.losses if training.learner else None
        self._plain = training.loss

    def forward(self, batch: PairBatch) -> Tensor:
        if self.weighter is None or self._losses is None:
            return self._plain(batch)
        losses, weights = self._losses(self.model, batch), batch.weight
        if weights is None:
            with torch.no_grad():
                weights = self.weighter(losses.weighted, losses.inputs)
        loss: Tensor = losses.fixed + (weights * losses.weighted).mean()
        return loss
