"""A model and a weighter, tied together by the hypergradient."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from reweight._examination import Examination
from reweight._graph import reached, refuse_reentrant
from reweight._inner_problem import UNTOUCHED, InnerProblem
from reweight._isolation import Isolation, isolated, twice_differentiable
from reweight._linearise import Linearisation, Mode, Partial
from reweight._notices import Notices
from reweight._penalty import weight_decay
from reweight._places import Places
from reweight._rows import looked_up, tables_of
from reweight._trees import Tree, filled, map_tensors, norm
from reweight._validate import can_read, check_finite, check_loss
from reweight.hypergradient import Hypergradient, ImplicitHypergradient, Linearise
from reweight.losses import Losses
from reweight.preconditioning import diagonal_of
from reweight.solvers import Status
from reweight.verdict import SolveInfo
from reweight.weighters import SampleWeighter

logger = logging.getLogger("reweight")

LossesFn = Callable[[Any, Any], "Losses | Tensor"]
OuterFn = Callable[[Any, Any], Tensor]
Reduction = Literal["mean", "sum"]

# Endings of a solve that nobody asks for by the choice of a solver. Negative curvature is met in
# every network, and is one only where it has made the direction useless.
_ALARMING = (Status.DIVERGING, Status.UNCONFIRMED, Status.DISJOINT)
_USELESS_RESIDUAL = 10.0
# A hypergradient smaller than this share of the influences comes from weights that do not respond.
_SATURATED = 1e-6


def wrap(
    model: nn.Module,
    weighter: SampleWeighter,
    losses: LossesFn | None = None,
    outer_loss: OuterFn | None = None,
    optimizer: Optimizer | None = None,
    hypergradient: ImplicitHypergradient | None = None,
    inner_params: Callable[[str], bool] | None = None,
    reduction: Reduction = "mean",
) -> Reweighted:
    """Tie a weighter to a model. The training loop stays yours.

    Embedding tables (``nn.Embedding``, ``nn.EmbeddingBag``) take part in an outer step by the rows
    that its batches look up, exactly: what it costs does not grow with the table. One that the
    losses use as a whole too, as in a softmax over all items, takes part as a whole.

    Args:
        model: the model that is trained on weighted samples.
        weighter: gives each sample its weight; its parameters are what the outer problem learns.
        losses: ``(model, batch) -> Losses``, or ``-> Tensor [B]`` where nothing is fixed and the
            weighter looks at the losses only. Default: ``model.losses(batch)``. Outer steps call
            it too, the first one about ten times, most of them with a float64 copy of the model
            and of the batch: keep side effects such as metrics out of it.
        outer_loss: ``(model, batch) -> Tensor []``, what the weights shall make better, on a dev
            batch. It may use the weighter's parameters too, for a penalty on the weights. Default:
            ``model.outer_loss(batch)`` if there is one, else the fixed part of ``losses``.
        optimizer: the optimizer of the model. It is only read: its weight decay is part of the
            inner problem, and without it the hypergradient is another one.
        hypergradient: how to solve; default ``ImplicitHypergradient(Neumann(num_terms=3))``.
        inner_params: ``name -> bool``, which trainable parameters count as inner; default all.
        reduction: of ``weights · losses``: ``"mean"`` (over the batch) or ``"sum"``.

    Returns:
        The wrapped object, whose ``loss(batch)`` takes the place of your loss, and whose
        ``outer_backward(batch, dev_batch)`` fills the ``.grad`` of the weighter.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: no inner parameters, a weighter without parameters, or one that shares
            parameters with the model.

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
        >>> rw.weights(batch)                       # an untrained weighter changes nothing
        tensor([1., 1., 1., 1., 1., 1., 1., 1.])
        >>> hypergradient = rw.outer_backward(batch, batch)
        >>> hypergradient.influence.shape
        torch.Size([8])
    """
    return Reweighted(
        model, weighter, losses, outer_loss, optimizer, hypergradient, inner_params, reduction
    )


class Reweighted:
    """A model whose training samples carry learned weights; made by :func:`wrap`.

    Attributes:
        model: the model, as given.
        weighter: the weighter, as given.
    """

    def __init__(
        self,
        model: nn.Module,
        weighter: SampleWeighter,
        losses: LossesFn | None,
        outer_loss: OuterFn | None,
        optimizer: Optimizer | None,
        hypergradient: ImplicitHypergradient | None,
        inner_params: Callable[[str], bool] | None,
        reduction: Reduction,
    ) -> None:
        for name, value, kind in (("model", model, nn.Module), ("weighter", weighter, nn.Module)):
            if not isinstance(value, kind):
                raise TypeError(f"{name} must be a torch.nn.Module, got {type(value).__name__}")
        if reduction not in ("mean", "sum"):
            raise ValueError(f'reduction={reduction!r}: choose "mean" or "sum"')
        if optimizer is not None and not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}"
            )
        if hypergradient is not None and not isinstance(hypergradient, ImplicitHypergradient):
            raise TypeError(
                "hypergradient must be an ImplicitHypergradient, got "
                f"{type(hypergradient).__name__}; a solver goes inside: "
                "ImplicitHypergradient(solver=...)"
            )
        for name, function, takes in (
            ("losses", losses, "(model, batch)"),
            ("outer_loss", outer_loss, "(model, batch)"),
            ("inner_params", inner_params, "(name)"),
        ):
            if function is not None and not callable(function):
                raise TypeError(
                    f"{name} must be a function of {takes}, got {type(function).__name__}"
                )
        if losses is None and not callable(getattr(model, "losses", None)):
            raise TypeError(
                f"losses is missing and {type(model).__name__} has no method losses(batch): pass "
                "losses=lambda model, batch: ... that returns one loss per sample"
            )
        self.model = model
        self.weighter = weighter
        self._losses = losses
        self._outer_loss = outer_loss
        self._optimizer = optimizer
        self._hypergradient = hypergradient or ImplicitHypergradient()
        self._inner_params = inner_params
        self._reduction: Reduction = reduction
        self._notices = Notices()
        self._examination = Examination()
        self._graphs_seen = False
        self._check_modules()
        theta, _ = self._parameters()
        if optimizer is not None:
            weight_decay(optimizer, theta)  # raises now rather than at the first outer step

    def loss(self, batch: Any) -> Tensor:
        """The inner loss ``fixed + reduce(weights · losses)``; gradients reach the model only.

        Raises:
            ValueError: losses that are reduced already, NaN losses, weights of a wrong shape.
        """
        losses = self._evaluate(batch)
        losses.check_finite()
        with torch.no_grad():
            weights = self._weigh(losses)
        return self._reduce(losses, weights)

    def weights(self, batch: Any) -> Tensor:
        """The weights ``[B]`` of a batch, without gradient and without a trace, as a question.

        Raises:
            ValueError: losses or weights that are not finite or of a wrong shape.
        """
        with isolated((self.model, self.weighter), self._devices()), torch.no_grad():
            losses = self._evaluate(batch)
            losses.check_finite()
            return self._weigh(losses)

    def hypergradient(
        self, batch: Any, dev_batch: Any, *, batches: Iterable[Any] | None = None
    ) -> Hypergradient:
        """The gradient of the outer loss on ``dev_batch`` by the weighter's parameters.

        A pure function: no ``.grad``, parameter, buffer or attribute of the modules, and no global
        random state (torch, numpy, Python) is other than before. (What a forward pass writes into
        lists, dicts and plain tensors of its own is not put back; ``batches`` draw as they would
        anywhere; a :class:`PowerIteration` moves on.) Gradient hooks do not run: they change the
        optimizer's steps, not the loss that it descends.

        Args:
            batch: a train batch, as for :meth:`loss`; the weights of its samples are judged.
            dev_batch: a batch for the outer loss.
            batches: train batches for the Hessian, one for every product of the series. A single
                batch makes every power of its Hessian biased; independent ones do not. For
                ``Neumann`` only, since other solvers need products with one matrix. Hand over an
                iterator that lives as long as the training: a loader would start anew each time.

        Raises:
            ValueError: losses or weights that are not finite or of a wrong shape, an outer loss
                that does not depend on the inner parameters, ``batches`` that run out.
            FloatingPointError: a derivative that is not finite.
        """
        return self._differentiate(batch, dev_batch, batches)

    def _differentiate(
        self, batch: Any, dev_batch: Any, batches: Iterable[Any] | None
    ) -> Hypergradient:
        theta, phi = self._parameters()
        # Further batches read other rows, which one batch's rows say nothing of.
        tables = tables_of(self.model, theta) if batches is None else {}
        devices = {p.device for p in (*theta.values(), *phi.values())}
        with isolated((self.model, self.weighter), devices) as isolation:
            rhs, direct = self._outer_gradients(theta, phi, tables, dev_batch)
            isolation.restore()
            # Around the backward passes too: a checkpointed module runs again in them.
            with twice_differentiable():
                losses = self._evaluate(batch)
                losses.check_finite()
                gamma = self._weigh(losses)
                leaf = gamma.detach().requires_grad_(True)
                fresh = None if batches is None else _Fresh(self, batches, theta, isolation)
                influence, info = self._solve(
                    batch, losses, leaf, theta, tables, rhs, isolation, fresh
                )
            grads = self._through_weighter(phi, gamma, influence, direct)
        self._remark(info)
        return Hypergradient(grads, info, influence)

    def outer_backward(
        self, batch: Any, dev_batch: Any, *, batches: Iterable[Any] | None = None
    ) -> Hypergradient:
        """Accumulate :meth:`hypergradient` into the ``.grad`` of the weighter's parameters.

        Clipping, the step and ``zero_grad`` are yours, as after any ``backward()``.
        """
        result = self._differentiate(batch, dev_batch, batches)
        for name, parameter in self._phi().items():
            grad = result.grads[name]
            if parameter.grad is None:
                parameter.grad = grad.clone()
            else:
                parameter.grad += grad
        return result

    def state_dict(self) -> dict[str, Any]:
        """What is to be saved beside the model and the optimizers."""
        return {"version": 1, "weighter": self.weighter.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state of :meth:`state_dict`.

        Raises:
            ValueError: a state of another version, or not a state of this kind.
            RuntimeError: the state of another weighter; nothing of it is kept.
        """
        if not isinstance(state, dict) or "weighter" not in state or state.get("version") != 1:
            found = sorted(state) if isinstance(state, dict) else type(state).__name__
            raise ValueError(
                f"this is not a state of a wrapped model (version 1): found {found}; a weighter's "
                "own state goes into weighter.load_state_dict"
            )
        before = {name: copy.deepcopy(entry) for name, entry in self.weighter.state_dict().items()}
        try:
            self.weighter.load_state_dict(state["weighter"])
        except Exception:
            # torch copies what fits before it complains about the rest.
            self.weighter.load_state_dict(before)
            raise

    # -- the inner problem -------------------------------------------------------------------

    def _evaluate(self, batch: Any) -> Losses:
        losses: object
        if self._losses is not None:
            losses = self._losses(self.model, batch)
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

    def _weigh(self, losses: Losses) -> Tensor:
        """Weights of detached losses and inputs, checked."""
        weighted = losses.weighted.detach()
        weights = self.weighter(weighted, map_tensors(Tensor.detach, losses.inputs))
        name = type(self.weighter).__name__
        if not isinstance(weights, Tensor) or weights.shape != weighted.shape:
            got = tuple(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
            raise ValueError(
                f"the weighter {name} returned {got} for losses of shape {tuple(weighted.shape)}: "
                "it must return one weight per sample (a trailing dimension of 1 goes with "
                ".squeeze(-1))"
            )
        if not weights.is_floating_point():
            raise TypeError(
                f"the weighter {name} returned weights of {weights.dtype}: they need a "
                "floating-point type to have a gradient; a comparison or .long() in its forward "
                "has none"
            )
        if can_read(weights) and not bool(weights.isfinite().all()):
            raise ValueError(
                f"the weighter {name} returned weights that are not finite: its inputs hold NaN, "
                "or an outer step was so large that it overflowed; lower the outer learning rate "
                "or clip the gradient"
            )
        return weights

    def _reduce(self, losses: Losses, weights: Tensor) -> Tensor:
        total = (weights * losses.weighted).sum()
        if self._reduction == "mean":
            # A batch without weighted samples contributes nothing, rather than 0/0.
            total = total / max(losses.weighted.numel(), 1)
        fixed = losses.fixed
        return total + (fixed.reshape(()) if isinstance(fixed, Tensor) else fixed)

    def _inner_loss(self, batch: Any, weights: Tensor) -> Tensor:
        return self._reduce(self._evaluate(batch), weights)

    # -- the outer problem -------------------------------------------------------------------

    def _outer(self, dev_batch: Any) -> Tensor:
        loss: object
        if self._outer_loss is not None:
            loss = self._outer_loss(self.model, dev_batch)
        elif callable(getattr(self.model, "outer_loss", None)):
            loss = self.model.outer_loss(dev_batch)  # type: ignore[operator]
        else:
            loss = torch.as_tensor(self._evaluate(dev_batch).fixed)
        return check_loss("outer", loss)

    def _outer_gradients(
        self, theta: Tree, phi: Tree, tables: Tree, dev_batch: Any
    ) -> tuple[Tree, Partial]:
        """Of the outer loss, by the inner parameters, and directly by the weighter's.

        Sparse for tables of which it reads a few rows.
        """
        loss = self._outer(dev_batch)
        if not self._graphs_seen:
            refuse_reentrant("outer_loss", loss)
        places = Places(theta, looked_up(loss, tables))
        num_places = len(places.inputs)
        grads: tuple[Tensor | None, ...] = (None,) * (num_places + len(phi))
        if loss.requires_grad:
            inputs = [*places.inputs, *phi.values()]
            grads = torch.autograd.grad(loss, inputs, allow_unused=True)
        if all(g is None for g in grads[:num_places]):
            raise ValueError(
                "the outer loss does not depend on any inner parameter: losses(model, batch) has "
                "no fixed part to take it from (pass outer_loss=), or it is computed under "
                "no_grad() or from a detached output, or inner_params leaves out what it uses"
            )
        direct = dict(zip(phi, grads[num_places:], strict=True))
        return places.gradient(grads[:num_places]), direct

    def _solve(
        self,
        batch: Any,
        losses: Losses,
        weights: Tensor,
        theta: Tree,
        tables: Tree,
        rhs: Tree,
        isolation: Isolation,
        fresh: _Fresh | None,
    ) -> tuple[Tensor, SolveInfo]:
        """The influence of each sample, and the verdict."""
        zero = torch.zeros_like(weights)
        if not weights.numel():
            return zero, SolveInfo(0.0, 0, Status.CONVERGED, None, "none")
        if not self._graphs_seen:
            loss = self._reduce(losses, weights)
            refuse_reentrant("losses", loss)
            for name in reached(loss, self._phi()):
                raise ValueError(
                    f"the losses depend on the weighter's {name} by another way than the weights: "
                    "a module that the weighter shares with the model, or a penalty in "
                    "Losses(fixed=...). Freeze it, give the weighter a copy, or put the penalty "
                    "into outer_loss"
                )
            self._graphs_seen = True
        problem = self._inner_problem(batch, losses, weights, theta, tables, isolation)
        auto = self._hypergradient.hvp == "auto"

        def linearise(mode: Mode) -> Linearisation:
            return problem.linearise(mode, self._examination, auto=auto)

        def diagonal(system: Linearisation) -> Tree | None:
            named = {name: theta[name] for name in system.params}
            told = self._hypergradient.preconditioner
            return diagonal_of(told, self._optimizer, named, system.rows)

        mixed, info = self._hypergradient.solve(
            linearise,
            rhs,
            {"weights": zero},
            None if self._optimizer is None else weight_decay(self._optimizer, theta),
            diagonal,
            fresh,
            self._examination.ruled_out,
        )
        product = mixed["weights"]
        if product is None:
            raise ValueError(UNTOUCHED)
        caveat = self._examination.caveats.get(info.hvp_mode, "")
        return product.neg(), dataclasses.replace(info, caveat=caveat)

    def _inner_problem(
        self,
        batch: Any,
        losses: Losses,
        weights: Tensor,
        theta: Tree,
        tables: Tree,
        isolation: Isolation,
    ) -> InnerProblem:
        loss = self._reduce(losses, weights)
        return InnerProblem(
            self.model, self._inner_loss, batch, weights, loss, theta, tables, isolation
        )

    def _remark(self, info: SolveInfo) -> None:
        """Say once what a person should know, and the rest to the log."""
        logger.debug(info.message)
        if info.hvp_mode == "finite_difference" and self._hypergradient.hvp == "auto":
            known = self._examination.ruled_out.items()
            reasons = "; ".join(f"{mode}: {error}" for mode, error in known)
            self._notices.warn(
                "finite_difference",
                "the Hessian is multiplied by finite differences of gradients, good to two to "
                f"five digits in float32, because no other way serves this model ({reasons})",
            )
        if info.caveat:
            self._notices.warn("caveat", info.message)
        useless = info.relative_residual > _USELESS_RESIDUAL
        if info.status in _ALARMING or (info.status is Status.NEGATIVE_CURVATURE and useless):
            self._notices.warn(info.status.name, info.message)

    def _through_weighter(
        self, phi: Tree, weights: Tensor, influence: Tensor, direct: Partial
    ) -> dict[str, Tensor]:
        """By the chain rule, and what the outer loss takes of the weighter directly."""
        grads: tuple[Tensor | None, ...] = (None,) * len(phi)
        if weights.requires_grad:
            parameters = list(phi.values())

            def pulled(v: Tensor) -> tuple[Tensor | None, ...]:
                return torch.autograd.grad(
                    weights, parameters, v.to(weights.dtype), allow_unused=True, retain_graph=True
                )

            grads = pulled(influence)
        unused = [name for name, g in zip(phi, grads, strict=True) if g is None]
        if len(unused) == len(phi):
            raise ValueError(
                f"the weights of {type(self.weighter).__name__} do not depend on any of its "
                "parameters: is there a detach() or no_grad() in its forward?"
            )
        if unused := [name for name in unused if direct.get(name) is None]:
            self._notices.warn(
                "unused",
                f"{type(self.weighter).__name__}: {', '.join(unused[:3])} took no part in the "
                "weights of this batch, so their hypergradient is zero.",
            )
        chained = filled(grads, phi)
        added = filled((direct.get(name) for name in phi), phi)
        result = {name: chained[name] + added[name] for name in phi}
        check_finite(
            "the hypergradient",
            result,
            f"the weights of {type(self.weighter).__name__} have no finite derivative here",
        )
        size = norm(influence)
        if norm(chained) < _SATURATED * size:
            # Unless they cancel, as at an optimum: of one sign and at random they don't.
            random = torch.rand(len(weights), generator=torch.Generator().manual_seed(0))
            apart = pulled(influence.abs() * (0.5 + random.to(influence)))
            if norm(filled(apart, phi)) < _SATURATED * size:
                self._notices.warn(
                    "saturated",
                    f"the weights of {type(self.weighter).__name__} hardly respond to its "
                    "parameters: where they are bounded, they have run to the bound, and an outer "
                    "step moves nothing. Start outer steps later, or lower the outer learning "
                    "rate.",
                )
        return result

    # -- parameters --------------------------------------------------------------------------

    def _theta(self) -> Tree:
        keep = self._inner_params or (lambda name: True)
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad and keep(n)}

    def _phi(self) -> Tree:
        return {n: p for n, p in self.weighter.named_parameters() if p.requires_grad}

    def _devices(self) -> set[torch.device]:
        return {p.device for p in (*self._theta().values(), *self._phi().values())}

    def _check_modules(self) -> None:
        for name, module in self.model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                raise TypeError(
                    f"{name or 'model'} is a TorchScript module, whose parameters can't be put "
                    "in another's place: hand over the module that it was made from"
                )
            if not isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
                continue
            for option in ("max_norm", "scale_grad_by_freq"):
                if getattr(module, option):
                    raise ValueError(
                        f"{name or 'model'} = {type(module).__name__}({option}="
                        f"{getattr(module, option)}): its gradients are not those of the loss, so "
                        "there is no hypergradient. Leave the option off; a penalty in the loss or "
                        "weight decay bounds the norms as well"
                    )

    def _parameters(self) -> tuple[Tree, Tree]:
        """The inner parameters and the weighter's, checked: they may have changed since."""
        theta, phi = self._theta(), self._phi()
        if not theta:
            raise ValueError(
                "there are no inner parameters: every parameter of the model is frozen, or "
                f"inner_params matches none of {[n for n, _ in self.model.named_parameters()][:5]}"
            )
        if not phi:
            raise ValueError(
                f"the weighter {type(self.weighter).__name__} has no trainable parameters: there "
                "is nothing for the outer problem to learn"
            )
        unreal = [n for n, p in (theta | phi).items() if not p.is_floating_point()]
        if unreal:
            raise TypeError(
                f"{unreal[0]} is complex: hypergradients are of real parameters. Keep its real "
                "and imaginary parts, torch.view_as_real(...), as the parameter and make the "
                "complex tensor in forward"
            )
        inner = {id(p): name for name, p in theta.items()}
        shared = {name: inner[id(p)] for name, p in phi.items() if id(p) in inner}
        if shared:
            name, twin = next(iter(shared.items()))
            raise ValueError(
                f"the weighter's {name} is the model's {twin}: weights must not depend on inner "
                "parameters. Hand what the weighter needs of the model over as Losses(inputs=...), "
                "which are detached"
            )
        return theta, phi


class _Fresh:
    """Linearisations of further train batches, one after the other, from the first each time."""

    def __init__(
        self, rw: Reweighted, batches: Iterable[Any], theta: Tree, isolation: Isolation
    ) -> None:
        if not isinstance(batches, Iterable):
            raise TypeError(
                f"batches must be an iterable of train batches, got {type(batches).__name__}"
            )
        self._rw, self._theta, self._isolation = rw, theta, isolation
        with isolation.outside():  # which draws the seed of a loader's order
            self._remaining = iter(batches)
        self._taken: list[Any] = []

    def __iter__(self) -> Iterator[Linearise]:
        yield from map(self._of, self._taken)
        while True:
            # A loader's shuffle draws from the random state that the user's own code sees.
            with self._isolation.outside():
                try:
                    batch = next(self._remaining)
                except StopIteration:
                    return
            self._taken.append(batch)
            yield self._of(batch)

    def _of(self, batch: Any) -> Linearise:
        def linearise(mode: Mode) -> Linearisation:
            self._isolation.restore()
            losses = self._rw._evaluate(batch)
            losses.check_finite()
            with torch.no_grad():
                weights = self._rw._weigh(losses)
            problem = self._rw._inner_problem(
                batch, losses, weights, self._theta, {}, self._isolation
            )
            return problem.linearise(mode)

        return linearise
