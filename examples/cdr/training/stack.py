"""Several trainings that take their inner steps together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from cdr.common import tensors_in, with_tensors
from cdr.data import PairBatch
from cdr.training.inner import inner_optimizer
from cdr.training.loop import Training
from cdr.training.options import InnerOptions


class Stack:
    """The parameters of several trainings as one tensor [S, ...] each, and their optimizer.

    The parameters of the trainings' own modules become views of it: what works on one model
    (outer steps, scores, snapshots) reads and writes the stack. The trainings' own inner optimizers
    never step; the library reads the weight decay from them.

    Args:
        trainings: Of one variant, with equally large models.
        options: Their own.

    Raises:
        ValueError: A model with buffers, which vmapped steps cannot update.

    Attributes:
        trainings: Those that still take part.
    """

    def __init__(self, trainings: Sequence[Training], options: InnerOptions) -> None:
        self.trainings = list(trainings)
        self._modules = [_Loss(training) for training in trainings]
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
        self._optimizer = inner_optimizer(inner_parameters, options)

    def step(self, batches: Sequence[PairBatch]) -> Tensor:
        """One inner step of each training on its batch; the losses [S] before it.

        Args:
            batches: In the order of the trainings, equally large.
        """
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

    def state_dict(self) -> dict[str, Any]:
        """That of the optimizer; the rest is in the trainings."""
        return self._optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of as many trainings."""
        self._optimizer.load_state_dict(state)

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
        self.model, self._plain = training.model, training.loss
        learner = training.learner
        self._losses = learner.losses if learner else None
        # The method only, so that the parameters of a weighter that is common to all are not here.
        self._weigh = learner.rw.weighter.__call__ if learner else None
        self.weighter = learner.rw.weighter if learner and not training.shares_weighter else None

    def forward(self, batch: PairBatch) -> Tensor:
        if self._weigh is None or self._losses is None:
            return self._plain(batch)
        losses, weights = self._losses(self.model, batch), batch.weight
        if weights is None:
            with torch.no_grad():
                weights = self._weigh(losses.weighted, losses.inputs)
        loss: Tensor = losses.fixed + (weights * losses.weighted).mean()
        return loss
