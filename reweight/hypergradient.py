"""The derivative of an outer loss through the minimiser of an inner one.

With ``θ*(φ) = argmin_θ inner(θ, φ)`` the implicit function theorem gives (BIAO, Eq. 10–13)

    d outer/dφ = ∂outer/∂φ − ∂/∂φ ⟨∇θ inner(θ*, φ), u⟩,   H u = ∂outer/∂θ,   H = ∂²inner/∂θ².
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Literal

import torch
from torch import Tensor

from reweight._curvature import (
    MODES,
    Function,
    Mode,
    Objective,
    Partial,
    Slope,
    Solver,
    System,
    gradients_of,
    solve,
    without_solve,
)
from reweight._tables import GraphInputs, Table, of_all_samples
from reweight._tensors import (
    Pending,
    Tree,
    check_finite,
    check_loss,
    check_tree,
    counted,
    dense,
    described,
    detached,
    max_abs,
    new_leaves,
    some,
    stored,
)
from reweight.preconditioning import Preconditioner, SecondMoments
from reweight.solvers import Identity, Neumann, SampleSpace, Status
from reweight.verdict import WAYS, Matrix, SolveInfo, Way

# Truncated solvers miss the inverse by design, so their residual is sampled this seldom.
_SAMPLED = 20
# What a printed result names.
_SHOWN_PARAMETERS, _SHOWN_SAMPLES = 5, 3


@dataclass(frozen=True)
class Hypergradient:
    """The result of one outer step, for ``print``.

    Attributes:
        grads: gradient of the outer loss per weighter parameter, by name.
        info: the verdict on the linear solve.
        influence: ``[B]``, the derivative of the outer loss with respect to each weight of the
            train batch, the reduction's factor included. Below zero: more of this sample helps.
    """

    grads: dict[str, Tensor]
    info: SolveInfo
    influence: Tensor

    def __repr__(self) -> str:
        grads, influence = described(self.grads), described(self.influence)
        return f"Hypergradient(grads={grads}, info={self.info!r}, influence={influence})"

    def __str__(self) -> str:
        sizes = {name: float(g.detach().double().norm()) for name, g in self.grads.items()}
        lines = [f"hypergradient of norm {math.hypot(*sizes.values()):.3g}"]
        width = max(map(len, sizes), default=0)
        for name, size in list(sizes.items())[:_SHOWN_PARAMETERS]:
            lines.append(f"  {name:<{width}}  {size:.2e}  {described(self.grads[name])}")
        if len(sizes) > _SHOWN_PARAMETERS:
            lines.append(f"  and {len(sizes) - _SHOWN_PARAMETERS} more")
        values = self.influence.detach().double()
        if len(values):
            strongest = values.abs().argsort(descending=True, stable=True)[:_SHOWN_SAMPLES]
            named = ", ".join(f"{values[i]:+.2e} (sample {i})" for i in strongest.tolist())
            helpful = int((values < 0.0).sum())
            lines.append(
                f"{helpful} of {counted(len(values), 'sample')} help the dev loss (influence below "
                f"zero); the strongest: {named}"
            )
        return "\n".join([*lines, str(self.info)])


def skipped_step(hparams: Tree, reason: str) -> Hypergradient:
    """The result of an outer step that was skipped: zero, without influences.

    Args:
        hparams: φ; the gradients have its names and shapes.
        reason: what was not finite, for the verdict.
    """
    detail = f"this outer step was skipped, because {reason}"
    info = SolveInfo(None, 0, Status.NOT_FINITE, None, "none", detail=detail)
    grads = {name: torch.zeros_like(entry) for name, entry in detached(hparams).items()}
    return Hypergradient(grads, info, torch.zeros(0))


@dataclass(frozen=True)
class ImplicitHypergradient:
    """Hypergradients by implicit differentiation, as a function over dicts of tensors.

    Args:
        solver: how to solve ``(H + damping·I)u = v``: any callable ``(matvec, b) -> Solution``.
            ``b`` has an entry for each parameter. Under :func:`reweight.wrap`, the entry of an
            embedding table holds the rows that the train batch reads, ``[r, D]``, so it differs
            from call to call.
        damping: added once to the operator, ≥ 0. It makes singular systems solvable, and is the
            curvature of a proximal term ``½·damping·‖θ − θ*‖²`` in the inner loss.
        hvp: ``"auto"`` tries ``"autograd"`` (a gradient graph that is reused), then ``"func"``
            (``torch.func``), then ``"finite_difference"``, and takes the first that works. Under
            :func:`reweight.wrap`, :class:`Identity` needs no Hessian, and ``"auto"`` tries before
            these ``"forward"`` (the losses are evaluated once, with forward-mode differentiation
            along ``u``) and ``"differences"`` (the losses are evaluated at ``θ ± ε·u``, without any
            differentiation: fused attention, checkpointing and layers without a derivative of their
            own work). With ``hvp="differences"`` a model of ``fully_shard`` is not gathered.
        preconditioner: a positive diagonal ``D``: the solver then works on
            ``D^½ (H + damping·I) D^½``, and its solution is multiplied by ``D^½``.
            :class:`SecondMoments` reads ``D`` from an adaptive optimizer; a dict of tensors, by the
            names of the parameters, is used as it is. It does not change the exact solution, but
            it changes a truncated one and the meaning of a step size.
        verdict_every: measure the residual in the first outer step and in every n-th one, ≥ 1. It
            takes one Hessian-vector product, which is up to half of a short step. ``None`` means 1
            for solvers that aim at the inverse (conjugate gradients, Nyström, a Neumann series of
            20 terms or more, a callable), and 20 for truncated ones. A solution that the solver
            claims to be exact is always measured. The curvature along a small residual, which tells
            what error it can hide, takes three products more, and ``None`` means 20 for it. Called
            as a function, this class always measures.
        compile: run the outer steps of :func:`reweight.wrap` by a program of ``torch.compile``, one
            for each shape of batches and four at most. It is compared with an eager step when it is
            new, and in every step that measures the residual, which stays eager. Compiling takes
            seconds to minutes, which a warning states once. What can't be compiled runs eagerly,
            with a warning that says why. For ``Identity``, and ``Neumann`` of at most 8 terms.
        curvature: the matrix ``H``. ``"hessian"``: that of the inner loss. ``"gauss_newton"``:
            ``Jᵀ H_out J``, the Hessian without the curvature of the model, with ``J`` the
            derivative of the model's outputs and ``H_out`` the Hessian of the loss by these
            outputs; weight decay and damping are added to either. It is positive semi-definite
            where the loss is convex in the outputs, and its products cost less. The mixed
            derivative stays exact. Under :func:`reweight.wrap` only, where ``losses`` returns
            :meth:`Losses.of`.

    Example:
        Ridge regression, differentiated by its penalty:

        >>> import torch
        >>> from reweight import ConjugateGradient
        >>> x, y = torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 3.0])
        >>> def inner(params, hparams):
        ...     error = x @ params["w"] - y
        ...     return error.square().sum() + hparams["penalty"] * params["w"].square().sum()
        >>> def outer(params, hparams):
        ...     return (params["w"].sum() - 1.0).square()
        >>> params = {"w": torch.tensor([7.0 / 6.0])}      # the minimiser at penalty 1
        >>> hparams = {"penalty": torch.tensor(1.0)}
        >>> grads, info = ImplicitHypergradient(ConjugateGradient())(inner, outer, params, hparams)
        >>> round(float(grads["penalty"]), 5), info.trustworthy
        (-0.06481, True)
    """

    solver: Solver = Neumann()
    damping: float = 0.0
    hvp: Literal["auto"] | Mode | Way = "auto"
    preconditioner: Preconditioner | None = None
    curvature: Matrix = "hessian"
    verdict_every: int | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.solver, type):
            name = self.solver.__name__
            raise TypeError(
                f"ImplicitHypergradient(solver={name}): {name} is a class, and a solver is an "
                f"instance: write ImplicitHypergradient({name}())"
            )
        if not callable(self.solver):
            raise TypeError(
                f"ImplicitHypergradient(solver={self.solver!r}): a solver is a value such as "
                "Neumann(num_terms=3), or any callable (matvec, b) -> Solution"
            )
        number = isinstance(self.damping, Real) and not isinstance(self.damping, bool)
        if not number or not math.isfinite(self.damping) or self.damping < 0:
            raise ValueError(
                f"ImplicitHypergradient(damping={self.damping!r}): damping must be finite and not "
                "below 0"
            )
        if self.hvp not in ("auto", *MODES, *WAYS):
            raise ValueError(
                f"ImplicitHypergradient(hvp={self.hvp!r}): choose one of "
                f"{', '.join(map(repr, ('auto', *MODES, *WAYS)))}"
            )
        if self.hvp in WAYS and not isinstance(self.solver, Identity):
            raise ValueError(
                f"ImplicitHypergradient(hvp={self.hvp!r}) makes first-order steps, and "
                f"{self.solver!r} needs products with the Hessian: choose "
                f"{', '.join(map(repr, ('auto', *MODES)))}, or solver=Identity()"
            )
        every = self.verdict_every
        whole = isinstance(every, Integral) and not isinstance(every, bool)
        if every is not None and (not whole or every < 1):
            raise ValueError(
                f"ImplicitHypergradient(verdict_every={every!r}): verdict_every must be a whole "
                "number of at least 1, or None: every step for solvers that aim at the inverse, "
                f"every {_SAMPLED}th for truncated ones"
            )
        self._check_compile()
        if not isinstance(self.preconditioner, (SecondMoments, Mapping, type(None))):
            raise TypeError(
                f"ImplicitHypergradient(preconditioner={self.preconditioner!r}): choose "
                "SecondMoments(), or a dict of positive tensors by the names of the parameters"
            )
        if self.curvature not in ("hessian", "gauss_newton"):
            raise ValueError(
                f"ImplicitHypergradient(curvature={self.curvature!r}): choose one of 'hessian', "
                "'gauss_newton'"
            )
        if isinstance(self.solver, SampleSpace):
            self._check_sample_space()

    def _check_sample_space(self) -> None:
        if self.curvature != "gauss_newton":
            raise ValueError(
                f"SampleSpace() solves the Gauss-Newton system, and curvature={self.curvature!r}: "
                'pass ImplicitHypergradient(SampleSpace(), damping=..., curvature="gauss_newton")'
            )
        if self.hvp not in ("auto", "autograd"):
            raise ValueError(
                f"SampleSpace() reads the layers from the gradient graph, and hvp={self.hvp!r}: "
                'leave hvp at "auto"'
            )
        if self.preconditioner is not None:
            raise ValueError(
                "SampleSpace() solves exactly, so a preconditioner would change nothing: leave it "
                "out"
            )

    def _check_compile(self) -> None:
        if not isinstance(self.compile, bool):
            raise TypeError(
                f"ImplicitHypergradient(compile={self.compile!r}): choose True or False; options "
                "of torch.compile are not passed on"
            )
        if self.compile and self.hvp not in ("auto", "func"):
            raise ValueError(
                f"ImplicitHypergradient(compile=True, hvp={self.hvp!r}): a compiled step has "
                'products by torch.func; leave hvp at "auto", or choose "func"'
            )
        if self.compile and self.verdict_every == 1:
            raise ValueError(
                "ImplicitHypergradient(compile=True, verdict_every=1): steps that measure the "
                "residual are eager, so none would be compiled; raise verdict_every, or leave it "
                "at None"
            )

    def __call__(
        self,
        inner: Objective,
        outer: Objective,
        params: Tree,
        hparams: Tree,
    ) -> tuple[Tree, SolveInfo]:
        """Differentiate ``outer(θ*(φ), φ)`` by ``φ``.

        Args:
            inner: ``(params, hparams) -> []``, the loss that ``params`` minimise.
            outer: ``(params, hparams) -> []``; where it uses ``hparams`` itself, the direct term
                is part of the result.
            params: θ, named tensors at (or near) the minimum of ``inner``.
            hparams: φ, named tensors.

        Returns:
            The hypergradient, with the names and shapes of ``hparams``, and the verdict.

        Raises:
            ValueError: a loss that is not a finite scalar, or that does not depend on what it is
                differentiated by; ``curvature="gauss_newton"``.
            FloatingPointError: a gradient or Hessian-vector product that is not finite.
        """
        if self.compile:
            raise ValueError(
                "ImplicitHypergradient(compile=True) is called as a function, and only the outer "
                "steps of wrap are compiled: leave compile at False here"
            )
        if self.curvature != "hessian":
            raise ValueError(
                f"curvature={self.curvature!r} needs the outputs of a model, and inner(params, "
                "hparams) is a number: use reweight.wrap, with losses that return Losses.of("
                'outputs, loss_fn), or curvature="hessian"'
            )
        if self.hvp in WAYS:
            raise ValueError(
                f"ImplicitHypergradient(hvp={self.hvp!r}) differentiates the losses of samples, "
                'which wrap knows and an inner loss as a function does not show: use hvp="auto"'
            )
        for name, tree in (("params", params), ("hparams", hparams)):
            check_tree(name, tree)
        with torch.enable_grad():
            theta, phi = new_leaves(params), new_leaves(hparams)
            rhs, direct = outer_gradients(check_loss("outer", outer(theta, phi)), theta, phi)
            if rhs is None:
                raise ValueError(
                    "the outer loss does not depend on any of params "
                    f"({some(theta)}): a detach() or no_grad() in outer, or outer uses other "
                    "tensors instead of params"
                )
            pending = Pending()
            if max_abs(stored(rhs)) == 0.0:
                solved = without_solve(phi)
            else:
                system = self._system(inner, theta, phi)
                failures: dict[Mode, BaseException] = {}
                linearisations = system.linearisations(self.modes, failures)
                solved = solve(system, rhs, self.solver, linearisations, failures, pending)
        indirect = solved.indirect
        unused = [name for name in phi if indirect[name] is None and direct[name] is None]
        if unused:
            raise ValueError(
                f"neither the outer loss nor the gradient of the inner loss depends on hparams "
                f"{', '.join(map(repr, unused[:3]))}: a detach() between them and the losses, or "
                "other tensors used in their place; leave out what is not used"
            )
        total = assembled(direct, indirect, hparams, pending=pending)
        pending.read()
        return total, solved.info

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes of Hessian-vector products to try, in this order."""
        if isinstance(self.solver, SampleSpace):
            return ("autograd",)
        return (self.hvp,) if self.hvp in MODES else MODES

    @property
    def ways(self) -> tuple[Way, ...]:
        """The ways of first-order steps to try, in this order; none where the Hessian is used."""
        if not isinstance(self.solver, Identity):
            return ()
        if self.hvp == "auto":
            return WAYS
        return (self.hvp,) if self.hvp in WAYS else ()

    @property
    def interval(self) -> int:
        """The number of outer steps from one measured residual to the next."""
        if self.verdict_every is not None:
            return self.verdict_every
        return 1 if getattr(self.solver, "aims_at_inverse", True) else _SAMPLED

    @property
    def curvature_interval(self) -> int:
        """The same for the curvature along a small residual, which takes three products."""
        return _SAMPLED if self.verdict_every is None else self.verdict_every

    def _system(self, inner: Objective, theta: Tree, phi: Tree) -> System:
        def checked(p: Tree, h: Tree) -> Tensor:
            return check_loss("inner", inner(p, h))

        return System(
            params=theta,
            hparams=phi,
            loss=lambda: checked(theta, phi),
            # torch.func does not allow reading values, so for it the loss is not checked.
            function=lambda: Function(inner, theta),
            slope=lambda: Slope(gradients_of(checked), theta),
            shift=dict.fromkeys(theta, self.damping),
            preconditioner=self.preconditioner,
        )


def outer_gradients(
    loss: Tensor, params: Tree, hparams: Tree, tables: Mapping[str, Table] | None = None
) -> tuple[Tree | None, Partial]:
    """The gradients of the outer loss by θ, and directly by φ.

    Args:
        loss: the outer loss, with its graph.
        params: θ, leaves.
        hparams: φ, leaves.
        tables: entries of θ that the loss reads by rows; their gradients are sparse.

    Returns:
        The first, or ``None`` if the loss does not depend on θ; and the second.
    """
    theta = GraphInputs(params, tables or {})
    count = len(theta.inputs)
    grads: tuple[Tensor | None, ...] = (None,) * (count + len(hparams))
    if loss.requires_grad:
        inputs = [*theta.inputs, *hparams.values()]
        grads = torch.autograd.grad(loss, inputs, allow_unused=True)
    direct = dict(zip(hparams, grads[count:], strict=True))
    if all(g is None for g in grads[:count]):
        return None, direct
    return theta.gradient(grads[:count]), direct


def assembled(
    direct: Partial,
    indirect: Partial,
    hparams: Tree,
    why: str = "look at both losses",
    pending: Pending | None = None,
) -> Tree:
    """The hypergradient: the direct term plus the term through θ*, summed over all processes.

    Args:
        direct: ``∂outer/∂φ``.
        indirect: ``−∂/∂φ ⟨∇θ inner, u⟩``.
        hparams: φ; the result has its names and shapes.
        why: the likely cause, for the error.
        pending: whether the entries are finite is looked at when this is read.

    Raises:
        FloatingPointError: an entry is not finite.
    """
    total: Tree = {}
    for name, like in hparams.items():
        terms = [dense(term) for term in (direct[name], indirect[name]) if term is not None]
        total[name] = sum(terms[1:], terms[0]) if terms else torch.zeros_like(like)
    check_finite("the hypergradient", total, why, pending)
    return of_all_samples(total)
