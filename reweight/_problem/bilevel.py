"""The bilevel problem, as the user stated it to ``wrap``."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from reweight._problem.arguments import as_optimizers, check_arguments
from reweight._problem.audit import Audit
from reweight._problem.companions import companions, referred
from reweight._problem.compilation import Compilation
from reweight._problem.hooks import GradientHooks
from reweight._problem.inner_parameters import InnerParameters, held
from reweight._problem.isolation import Isolation, is_compiled, isolated, parts_of
from reweight._problem.notices import Notices, Silent
from reweight._problem.objects import holds_numbers, inside, of_modules
from reweight._problem.processes import check_alone, check_passes
from reweight._problem.progress import Progress
from reweight._problem.shares import WHOLE, Shares
from reweight._problem.statement import check_modules, check_optimizers, check_parameters
from reweight._problem.weights import weigh
from reweight._problem.writes import Guard
from reweight._sharded import Shards, StandIns, in_shards
from reweight._tensors import Pending, Ranks, Tree, check_loss, tensors_in
from reweight.losses import Losses
from reweight.weighters import SampleWeighter

LossesFn = Callable[[Any, Any], "Losses | Tensor"]
OuterFn = Callable[[Any, Any], Tensor]
Reduction = Literal["mean", "sum"]


class BilevelProblem:
    """A model, a weighter and two losses: inner ``fixed + reduce(weights · losses)``, and outer.

    See :func:`reweight.wrap` for the arguments, which become attributes.
    """

    def __init__(
        self,
        model: nn.Module,
        weighter: SampleWeighter,
        losses: LossesFn | None,
        outer_loss: OuterFn | None,
        optimizer: Optimizer | Iterable[Optimizer] | None,
        inner_params: Callable[[str], bool] | None,
        reduction: Reduction,
        ranks: Ranks | None = None,
    ) -> None:
        check_arguments(model, weighter, losses, outer_loss, optimizer, inner_params)
        if reduction not in ("mean", "sum"):
            raise ValueError(f'reduction={reduction!r}: choose "mean" or "sum"')
        self.model = model
        self.weighter = weighter
        self.ranks = ranks
        # Whether no process group existed where ``wrap`` looked for one.
        self.is_alone_so_far = False
        # How many outer steps were begun, the same number on all processes.
        self.begun = 0
        self.optimizers = () if optimizer is None else as_optimizers(optimizer)
        self._stated = self.optimizers
        self.reduction: Reduction = reduction
        self.audit, self.guard = Audit(), Guard()
        self.notices = Notices()
        self.compilation: Compilation | None = Compilation()
        self.progress = Progress(self.notices)
        self.hooks: GradientHooks | None = None
        self._shards: Shards | None = None
        self._theta: Tree | None = None  # in the place of what the modules hold
        self.by_rows: frozenset[int] = frozenset()  # ids of tables of which only rows are there
        self._is_plain = False  # whether plain parameters stand for sharded ones now
        # Leaves outside of all modules that were seen to outlive a pass.
        self.elsewhere: dict[int, Tensor] = {}
        self._losses_fn, self._outer_fn, self._chosen = losses, outer_loss, inner_params
        self._companions = companions((losses, outer_loss), (model, weighter))
        # Arrays, generators and optimizers that the user's functions refer to. Their lists and
        # dicts are left alone: what is counted or logged there is to stay.
        self.objects = referred((losses, outer_loss), holds_numbers)
        self._inner = InnerParameters(
            model, self.optimizers, inner_params, self._companions, weighter
        )
        check_modules(model)
        self.shards(self.parts())
        theta, _ = self.parameters()
        check_optimizers(model, self.optimizers, theta)
        self.weight_decay(theta)  # raises now rather than at the first outer step
        if ranks is not None:
            check_passes(self.parts())

    def apart(self) -> BilevelProblem:
        """The same problem on the same modules and this process's samples, which audits anew.

        It neither warns nor compiles.

        Its optimizer holds the weight decay of the original and nothing else.
        """
        twin, theta = copy.copy(self), self.theta()
        twin.ranks, twin.is_alone_so_far = None, False
        twin.audit, twin.guard, twin.notices = Audit(), Guard(), Silent()
        twin.progress, twin.compilation = Progress(twin.notices), None
        twin.hooks = GradientHooks(theta)  # the check takes them off before the problem sees them
        decay = self.weight_decay(theta)
        groups = [{"params": [p], "weight_decay": decay.get(n, 0.0)} for n, p in theta.items()]
        twin.optimizers = (torch.optim.SGD(groups, lr=1.0),)
        twin._inner = InnerParameters(
            self.model, twin.optimizers, self._chosen, self._companions, self.weighter
        )
        return twin

    def standing_in(self, stand_ins: StandIns, named: Tree | None = None) -> BilevelProblem:
        """The same problem, and all that is known of it, with plain parameters for sharded ones.

        Args:
            stand_ins: the plain parameters.
            named: the inner parameters, where the modules go on to hold the sharded ones.
        """
        twin = copy.copy(self)
        twin._is_plain = True
        if self._shards is not None:
            twin.by_rows = frozenset(id(stand_ins.of(p)) for p in self._shards.tables())
        if named is not None:
            twin._theta = {name: stand_ins.of(p) for name, p in named.items()}
        twin.optimizers = stand_ins.optimizers(self.optimizers)
        twin._stated = stand_ins.optimizers(self._stated)
        # The sizes of tables change from step to step.
        twin.compilation = None
        twin._inner = InnerParameters(
            self.model, twin.optimizers, self._chosen, self._companions, self.weighter
        )
        return twin

    def together(self) -> AbstractContextManager[None]:
        """A context of what all processes do together; what one raises, all hear of."""
        if self.is_alone_so_far:
            check_alone()
        return nullcontext() if self.ranks is None else self.ranks.together()

    def shards(self, parts: Sequence[nn.Module]) -> Shards | None:
        """What of the model lies in shards, if something does; the modules then hold shards."""
        if self._is_plain or not in_shards(parts):
            return None
        if self._shards is None or not self._shards.is_of(parts):
            names = {id(p): name for name, p in self.model.named_parameters()}
            self._shards = Shards(parts, names)
        self._shards.reshard()
        return self._shards

    # -- parameters ----------------------------------------------------------------------------

    def theta(self) -> Tree:
        """The inner parameters, by their names in the model or the place where they were found."""
        if self._theta is not None:
            return self._theta
        if self._shards is not None and not self._is_plain:
            self._shards.reshard()  # the optimizers hold shards
        return self._inner.theta()

    def phi(self) -> Tree:
        """The parameters of the weighter, by their names."""
        return {n: p for n, p in self.weighter.named_parameters() if p.requires_grad}

    def parameters(self) -> tuple[Tree, Tree]:
        """Both, checked: they may have changed since the last outer step."""
        theta, phi = self.theta(), self.phi()
        served = set() if self._shards is None else self._shards.served()
        check_parameters(self.model, self.weighter, theta, phi, served)
        return theta, phi

    def weight_decay(self, theta: Tree) -> dict[str, float]:
        """The optimizers' weight decay by name; 0 for what none holds."""
        return self._inner.weight_decay(theta)

    def devices(self) -> set[torch.device]:
        """The devices of all parameters."""
        return {p.device for p in (*self.theta().values(), *self.phi().values())}

    def roots(self) -> list[nn.Module]:
        """The model, the weighter and the modules that the losses refer to."""
        return [self.model, self.weighter, *self._companions.values()]

    def parts(self) -> list[nn.Module]:
        """Every module that an evaluation may use."""
        return parts_of(*self.roots())

    def mutable(self, parts: Sequence[nn.Module], *batches: Any) -> list[Any]:
        """Lists, dicts, arrays and generators that a pass over some batches may change."""
        return [*of_modules(parts), *self.objects, *inside(batches)]

    def isolated(
        self, parts: Sequence[nn.Module], theta: Tree, batches: Sequence[Any], *, look: bool
    ) -> AbstractContextManager[Isolation]:
        """A context without side effects, which finds out what passes write if it is to look."""
        return isolated(
            parts,
            {p.device for p in (*theta.values(), *self.phi().values())},
            theta,
            self.guard,
            tensors_in(batches),
            # A compiled part would be compiled again to be watched.
            watch=look and not is_compiled(parts),
            objects=[*self.guard.objects, *inside(batches)],
        )

    def settled(self) -> set[int]:
        """The ``id`` of every tensor of which ``wrap`` was told whether it is inner.

        That is what an optimizer holds, moved or not, or without one, what ``inner_params`` leaves
        out.
        """
        if not self._stated:
            return {id(p) for p in self.model.parameters()}
        return held(self._stated)

    def named(self, tensors: Iterable[Tensor]) -> Tree:
        """Tensors by the best name there is."""
        return self._inner.named(tensors)

    # -- losses and weights --------------------------------------------------------------------

    def losses(self, batch: Any, pending: Pending | None = None) -> Losses:
        """The losses of a batch, with their graph; values are looked at with ``pending``.

        Raises:
            ValueError: losses that are reduced already, or not finite.
        """
        losses = self.evaluated(batch)
        losses.check_finite(pending)
        if losses.weighted.numel() == 1:
            self._notice_one_loss(batch)
        return losses

    def weights(self, losses: Losses, pending: Pending | None = None) -> Tensor:
        """The weights ``[B]`` for losses, with their graph; values are looked at with ``pending``.

        Raises:
            ValueError: weights that are not finite or of another shape.
        """
        return weigh(self.weighter, losses, pending)

    def inner_loss(self, losses: Losses, weights: Tensor, shares: Shares = WHOLE) -> Tensor:
        """``fixed + reduce(weights · losses)``, or this process's part of its sum over processes.

        Raises:
            ValueError: there are more or fewer losses than weights.
        """
        if losses.weighted.shape != weights.shape:
            raise ValueError(
                f"the number of losses changed from {len(weights)} to {len(losses.weighted)} when "
                "the inner parameters were moved a little: losses choose samples by what the model "
                "computes, as mining does. Return a loss for every candidate, 0 for those that are "
                "not chosen, or use operations that can be differentiated twice"
            )
        total = (weights * losses.weighted).sum()
        total = total / self.divisor(losses.weighted, shares)
        fixed = losses.fixed.reshape(()) if isinstance(losses.fixed, Tensor) else losses.fixed
        return total + (fixed if shares.fixed == 1.0 else shares.fixed * fixed)

    def divisor(self, weighted: Tensor, shares: Shares = WHOLE) -> int:
        """What the sum of weighted losses is divided by."""
        count = weighted.numel() if shares.total is None else shares.total
        # A batch without weighted samples contributes nothing, rather than 0/0.
        return max(count, 1) if self.reduction == "mean" else 1

    def outer_loss(self, dev_batch: Any, pending: Pending | None = None) -> Tensor:
        """The outer loss of a dev batch, with its graph; looked at with ``pending``."""
        loss: object
        if self._outer_fn is not None:
            loss = self._outer_fn(self.model, dev_batch)
        elif callable(getattr(self.model, "outer_loss", None)):
            loss = self.model.outer_loss(dev_batch)  # type: ignore[operator]
        else:
            loss = torch.as_tensor(self.evaluated(dev_batch).fixed)
        return check_loss("outer", loss, pending)

    def _notice_one_loss(self, batch: Any) -> None:
        """Warn where the one loss of a batch seems to be an average of shape ``[1]``."""
        rows = [x.size(0) for x in tensors_in(batch) if x.ndim]
        if rows and min(rows) > 1:
            self.notices.warn(
                "one loss",
                f"losses returned one loss for a batch whose tensors have {max(rows)} rows, so the "
                "whole batch gets one weight. If it is an average of shape [1], return one loss "
                'per sample (reduction="none"), and penalties as Losses(fixed=...).',
            )

    def evaluated(self, batch: Any) -> Losses:
        """The losses of a batch, with their graph, finite or not."""
        losses: object
        if self._losses_fn is not None:
            losses = self._losses_fn(self.model, batch)
        else:
            losses = self.model.losses(batch)  # type: ignore[operator]
        if isinstance(losses, Losses):
            return losses
        if isinstance(losses, Tensor):
            return Losses(losses)
        raise TypeError(
            "losses(model, batch) must return reweight.Losses or a tensor [B], got "
            f"{type(losses).__name__}"
        )
