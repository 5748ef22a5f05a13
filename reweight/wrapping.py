"""``wrap``: a model and a weighter, connected by the hypergradient."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from reweight._problem import (
    BilevelProblem,
    LossesFn,
    OuterFn,
    Reduction,
    hypergradient,
    ranks_of,
    record,
    refuse_another,
    start_alike,
    weights,
)
from reweight._tensors import (
    NotFiniteError,
    Pending,
    RankError,
    check_finite,
    ends,
    held,
    stored,
    uninterrupted,
)
from reweight.hypergradient import Hypergradient, ImplicitHypergradient, skipped_step
from reweight.weighters import SampleWeighter, compares_samples

if TYPE_CHECKING:  # not every build of torch has it
    from torch.distributed import ProcessGroup


def wrap(
    model: nn.Module,
    weighter: SampleWeighter,
    losses: LossesFn | None = None,
    outer_loss: OuterFn | None = None,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    hypergradient: ImplicitHypergradient | None = None,
    inner_params: Callable[[str], bool] | None = None,
    reduction: Reduction = "mean",
    process_group: ProcessGroup | Literal["auto"] | None = "auto",
    not_finite: Literal["raise", "skip"] = "raise",
) -> Reweighted:
    """Connect a weighter to a model. Your training loop does not change.

    Of an embedding table (``nn.Embedding``, ``nn.EmbeddingBag``) an outer step uses the rows that
    its batches look up. The result is exact, and the cost does not grow with the table. A table
    that the losses also use as a whole, as in a softmax over all items, is used as a whole.

    Args:
        model: the model that is trained on weighted samples. It may lie in shards: parameters of
            ``fully_shard`` (FSDP2) and tables that ``RowwiseParallel`` shards by rows.
        weighter: computes the weight of each sample; the outer problem learns its parameters.
        losses: ``(model, batch) -> Losses``, or ``-> Tensor [B]`` where nothing is fixed and the
            weighter reads the losses only. Default: ``model.losses(batch)``. Outer steps call it
            too. An outer step that compares second derivatives with finite differences, as the
            first one does, calls it about ten times, in float64. It should have no side effects
            such as metrics.
        outer_loss: ``(model, batch) -> Tensor []``, the loss on a dev batch that the weights are to
            reduce. It may use the weighter's parameters too, for a penalty on the weights. Default:
            ``model.outer_loss(batch)`` if there is one, else the fixed part of ``losses``.
        optimizer: the optimizer that trains the model, or several of them. They are only read. What
            they hold and move (with a learning rate above 0) is inner, wherever it lives: in the
            model, in a loss with parameters of its own, in a tensor outside of all modules. Their
            weight decay is part of the inner problem. A leaf that the losses depend on and that no
            optimizer holds counts as a constant; a warning names it, and the result is not trusted.
        hypergradient: how to solve; default ``ImplicitHypergradient(Neumann(num_terms=3))``.
        inner_params: ``name -> bool``, which trainable parameters are inner; default: what the
            optimizers hold and move, or without an optimizer every trainable parameter of the
            model. The weighter's parameters are never inner, also where it is a part of the model.
        reduction: of ``weights · losses``: ``"mean"`` (over the batch) or ``"sum"``.
        process_group: the processes whose batches are one batch in an outer step; ``"auto"``: all,
            where ``torch.distributed`` is initialised; ``None``: this process alone. The weighter
            starts with the values that it has on the first of them.
        not_finite: what ``outer_backward`` does where a loss, a weight or a derivative is NaN or
            infinite: ``"raise"`` an error, or ``"skip"`` the outer step on all processes. A step
            that is skipped adds nothing to ``.grad`` and is counted in ``rw.skipped``; a warning
            tells of the first one, the tenth, the hundredth and so on.

    Returns:
        The wrapped object. Its ``loss(batch)`` replaces your loss. Its
        ``outer_backward(batch, dev_batch)`` fills the ``.grad`` of the weighter.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: no inner parameters, a weighter without parameters, or one that shares
            parameters with the model; an optimizer that holds nothing of the model.

    Example:
        >>> import torch, reweight
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Linear(3, 1)
        >>> def losses(model, batch):
        ...     x, y = batch
        ...     return (model(x).squeeze(-1) - y).square()
        >>> rw = reweight.wrap(model, reweight.LossWeighter(), losses,
        ...                    outer_loss=lambda model, batch: losses(model, batch).mean())
        >>> batch = torch.randn(8, 3), torch.randn(8)
        >>> rw.weights(batch)                       # an untrained weighter gives 1
        tensor([1., 1., 1., 1., 1., 1., 1., 1.])
        >>> hypergradient = rw.outer_backward(batch, batch)
        >>> hypergradient.influence.shape
        torch.Size([8])
    """
    if hypergradient is not None and not isinstance(hypergradient, ImplicitHypergradient):
        raise TypeError(
            f"hypergradient must be an ImplicitHypergradient, got {_named(hypergradient)}; a "
            "solver goes inside: hypergradient=ImplicitHypergradient(solver=Neumann(num_terms=3))"
        )
    if not_finite not in ("raise", "skip"):
        raise ValueError(f'not_finite={not_finite!r}: choose "raise" or "skip"')
    ranks = ranks_of(process_group)
    with nullcontext() if ranks is None else ranks.together():
        problem = BilevelProblem(
            model, weighter, losses, outer_loss, optimizer, inner_params, reduction, ranks
        )
        if ranks is not None:
            start_alike(weighter, ranks)
        problem.is_alone_so_far = ranks is None and process_group == "auto"
    return Reweighted(problem, hypergradient or ImplicitHypergradient(), not_finite)


def _named(value: object) -> str:
    """What was passed, for an error."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, SampleWeighter):
        return f"the weighter {type(value).__name__} (the second argument of wrap)"
    return type(value).__name__


class Reweighted:
    """A model whose training samples carry learned weights; made by :func:`wrap`.

    Attributes:
        problem: the bilevel problem that ``wrap`` was given, for diagnostics and checks.
        strategy: how outer steps are solved.
        not_finite: what :meth:`outer_backward` does where something is not finite.
    """

    def __init__(
        self,
        problem: BilevelProblem,
        strategy: ImplicitHypergradient,
        not_finite: Literal["raise", "skip"] = "raise",
    ) -> None:
        self.problem = problem
        self.strategy = strategy
        self.not_finite = not_finite

    def __repr__(self) -> str:
        problem = self.problem
        theta = problem.theta()
        inner = sum(p.numel() for p in theta.values())
        total = sum(p.numel() for p in self.model.parameters())
        decay = sorted({d for d in problem.weight_decay(theta).values() if d})
        optimizer = "none: weight decay is not part of the inner problem"
        if problem.optimizers:
            names = ", ".join(type(each).__name__ for each in problem.optimizers)
            optimizer = f"{names}, weight decay "
            optimizer += ", ".join(f"{d:.3g}" for d in decay) or "0"
        lines = [
            f"model: {type(self.model).__name__}, {inner} of {total} parameters are inner",
            f"weighter: {self.weighter!s}",
            f"optimizer: {optimizer}",
            f"hypergradient: {self.strategy!r}",
            f"outer steps so far: {problem.progress.steps}",
        ]
        if self.skipped:
            lines.append(f"outer steps that were skipped, not being finite: {self.skipped}")
        if (ranks := problem.ranks) is not None:
            lines.append(f"processes: {ranks.size}, this is rank {ranks.rank}")
        return "\n  ".join(["Reweighted", *lines])

    @property
    def model(self) -> nn.Module:
        """The model, as given."""
        return self.problem.model

    @property
    def weighter(self) -> SampleWeighter:
        """The weighter, as given."""
        return self.problem.weighter

    @property
    def skipped(self) -> int:
        """How many outer steps were skipped so far, with ``not_finite="skip"``."""
        return self.problem.progress.skipped

    def loss(self, batch: Any) -> Tensor:
        """The inner loss ``fixed + reduce(weights · losses)``; gradients reach the model only.

        With several processes it is the loss of this one's samples. Where the weighter compares
        samples, as ``LossWeighter`` does, it compares those of all processes, so all have to call.

        Raises:
            ValueError: losses that are reduced already, NaN losses, weights of a wrong shape.
        """
        pending, problem = Pending(), self.problem
        together = compares_samples(problem.weighter)
        with problem.together() if together else nullcontext():
            losses = problem.losses(batch, pending)
            with torch.no_grad():
                weights = problem.weights(losses, pending)
            loss = problem.inner_loss(losses, weights)
            pending.read()
        return loss

    def weights(self, batch: Any) -> Tensor:
        """The weights ``[B]`` of a batch, without gradient and without side effects.

        Of this batch alone: a process may ask for weights without the others. Only where the model
        is sharded every process has to call, since the model needs all of them.

        Raises:
            ValueError: losses or weights that are not finite or of a wrong shape.
        """
        return weights(self.problem, batch)

    def hypergradient(
        self, batch: Any, dev_batch: Any, *, batches: Iterable[Any] | None = None
    ) -> Hypergradient:
        """The gradient of the outer loss on ``dev_batch`` by the weighter's parameters.

        With several processes, ``batch`` and ``dev_batch`` are this process's samples, all have to
        call, and the result is that of one process with all samples: equal ``grads`` and ``info``
        everywhere, and the ``influence`` of one's own samples. What one of them raises, the others
        raise as a :class:`reweight.RankError`.

        A pure function: it changes no ``.grad``, parameter, buffer or attribute of the modules, no
        global random state (torch, numpy, Python), and no tensor that existed before, such as the
        batch or a codebook that a list holds. Of lists and dicts that the functions given to
        ``wrap`` refer to, it restores the tensors, not the entries. ``batches`` advance the random
        state as usual. Entries that a gradient hook always sets to zero are constants; hooks that
        scale or clip change nothing, since training stops at the same point; other hooks are named,
        and the result is not trusted.

        Args:
            batch: a train batch, as for :meth:`loss`; the gradient is taken through its weights.
            dev_batch: a batch for the outer loss.
            batches: train batches for the Hessian, one for every product of the series. With one
                batch for all, the powers of its Hessian are biased; with independent batches they
                are not. For ``Neumann`` only, since other solvers need products with one matrix.
                Pass an iterator that lives as long as the training: a loader would start again at
                every call.

        Raises:
            ValueError: losses or weights that are not finite or of a wrong shape, an outer loss
                that does not depend on the inner parameters, ``batches`` that run out.
            FloatingPointError: a derivative that is not finite.
            RankError: another process raised an error, ended, or takes another step.
        """
        return hypergradient(self.problem, batch, dev_batch, self.strategy, batches)

    def outer_backward(
        self, batch: Any, dev_batch: Any, *, batches: Iterable[Any] | None = None
    ) -> Hypergradient:
        """Accumulate :meth:`hypergradient` into the ``.grad`` of the weighter's parameters.

        Clipping, the optimizer's step and ``zero_grad`` are yours, as after any ``backward()``.

        Every call counts as an outer step. A warning is given once where outer steps lead nowhere:
        all weights at a bound, a mean weight that moves in one direction only, or a weighter whose
        parameters have not changed after 20 calls.

        Errors are those of :meth:`hypergradient`. With ``wrap(not_finite="skip")``, a step in which
        something is not finite on any process leaves ``.grad`` as it is on all of them. It then
        returns a hypergradient of zero without influences, whose ``info.status`` is
        ``Status.NOT_FINITE`` and whose message tells the reason.

        Ctrl-C waits until the model is as it was, which is the time of a pass or two; then nothing
        was added to ``.grad``. Pressed twice, it does not wait.
        """
        phi = self.problem.phi()
        try:
            result = hypergradient(self.problem, batch, dev_batch, self.strategy, batches)
        except (FloatingPointError, NotFiniteError, RankError) as error:
            if self.not_finite == "raise":
                raise
            if isinstance(error, RankError) and not error.not_finite:
                raise
            self.problem.progress.skip(str(error))
            return skipped_step(phi, str(error))
        self.problem.progress.step(type(self.weighter).__name__, phi, result.grads)
        # An optimizer could not use a .grad that was made in inference mode, nor one to which some
        # entries were added and others not.
        with held(), torch.inference_mode(False), torch.no_grad():
            for name, parameter in phi.items():
                grad = result.grads[name]
                if parameter.grad is None:
                    parameter.grad = grad.clone()
                else:
                    parameter.grad += grad
        return result

    def check_gradients(self) -> None:
        """Raise where the model's gradients can't be used, before its optimizer takes them.

        To be called after ``rw.loss(batch).backward()``. A loss that is finite can have a gradient
        that is not, as that of a root at zero, and one step then spoils every parameter. It waits
        for the device once. With several processes all of them have to call.

        With a ``GradScaler`` leave it out: that one skips such steps itself.

        Raises:
            FloatingPointError: a gradient is NaN or infinite; named by its parameter.
            RankError: it is on another process.

        Warns:
            UserWarning: once, where every gradient is exactly zero.
        """
        problem = self.problem
        with problem.together():
            given = {n: p.grad for n, p in problem.theta().items() if p.grad is not None}
            values = stored(given)
            pending = Pending()
            why = (
                "the loss itself may be finite, as a root or a norm at zero is: add a small number "
                "inside of it. Skip this step (optimizer.zero_grad()), or look at the batch"
            )
            check_finite("the gradient of the inner loss", values, why, pending)
            (found,) = pending.read(ends(*values.values()))
        if found and not any(found):
            problem.notices.warn(
                "zero gradients",
                "the gradient of the inner loss is exactly zero in every parameter. Either all "
                "weights of the batch are zero, or the losses are too small for the precision, and "
                "their gradient underflows: in half precision use a GradScaler or bfloat16, and do "
                "not divide the loss by large numbers.",
            )

    def state_dict(self) -> dict[str, Any]:
        """What to save beside the states of the model and the optimizers, in plain values.

        The weighter's state, what it is of, and how far the outer steps are.
        :class:`reweight.checkpoint.RunState` holds all that a run needs.
        """
        progress = self.problem.progress
        return {
            "version": 2,
            "weighter": self.weighter.state_dict(),
            "of": record(self.problem),
            "steps": progress.steps,
            "skipped": progress.skipped,
            "audit": self.problem.audit.state_dict(),
        }

    @uninterrupted
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state of :meth:`state_dict`.

        A state of version 1, which earlier releases saved, does not say what it is of. It is loaded
        if its entries have the names and shapes of this weighter's, with a warning.

        Raises:
            ValueError: a state of another kind of weighter, or of a weighter or a model with other
                parameters; a state of another version, or not a state of this kind.
            RuntimeError: the state does not fit the weighter, which is then unchanged.
        """
        version = state.get("version") if isinstance(state, dict) else None
        entries = {1: {"weighter"}, 2: {"weighter", "of", "steps", "skipped", "audit"}}
        if version not in entries or not entries[version] <= state.keys():
            found = sorted(state) if isinstance(state, dict) else type(state).__name__
            raise ValueError(
                f"this is not a state of a wrapped model (version 1 or 2): found {found}; a "
                "weighter's own state goes into weighter.load_state_dict"
            )
        if version == 1:
            warnings.warn(
                "this state is of an earlier release and does not say what it is of: it is loaded "
                f"into this {type(self.weighter).__name__} because names and shapes may fit. Save "
                "it anew with rw.state_dict().",
                stacklevel=3,
            )
        else:
            refuse_another(self.problem, state["of"])
        before = {name: copy.deepcopy(entry) for name, entry in self.weighter.state_dict().items()}
        try:
            self.weighter.load_state_dict(state["weighter"])
        except Exception:
            # torch copies the entries that fit before it raises an error for the others.
            self.weighter.load_state_dict(before)
            raise
        if version == 2:
            progress = self.problem.progress
            progress.steps, progress.skipped = state["steps"], state["skipped"]
            self.problem.audit.load_state_dict(state["audit"])
