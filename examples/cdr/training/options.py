"""All options of a training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from cdr.common import at_least, positive, refuse, share, widths
from cdr.data import Fact
from cdr.models import MODELS, CrossDomainModel, ModelOptions
from reweight import ConjugateGradient, Identity, ImplicitHypergradient, Neumann


@dataclass(frozen=True)
class InnerOptions:
    """How the recommendation model is trained."""

    lr: float = 2e-3
    """Adam's learning rate."""
    weight_decay: float = 1e-4
    """Adam's weight decay."""
    batch_size: int = 128
    """Target behaviours in a batch, each with one source behaviour of its user."""
    epochs: int = 20
    """At most this many."""
    patience: int = 3
    """Stop after so many epochs without a better validation AUC."""
    gamma: float = 1.0
    """Weight of the source loss in the base model."""
    source_batch: Literal["paired", "independent"] = "paired"
    """Beside each target row: a random source behaviour of its user, or one drawn from all."""
    lazy_tables: bool = False
    """Let Adam move only the rows of the tables that a batch looks up; needs another lr."""
    cuda_graphs: bool = False
    """Record the inner step as a CUDA graph, on a GPU."""

    def __post_init__(self) -> None:
        positive("inner", self, "lr")
        at_least(0, "inner", self, "weight_decay", "gamma")
        at_least(1, "inner", self, "batch_size", "epochs", "patience")
        if self.lazy_tables and self.cuda_graphs:
            refuse(
                "inner", "cuda_graphs", True, "a step with --inner.lazy-tables can't be recorded"
            )


HOLDS_OUT = ("split", "split-users")
"""Those of --outer.dev for which rows are held out from training."""


@dataclass(frozen=True)
class OuterOptions:
    """How the behavioral perceptron is trained."""

    weighter: Literal["perceptron", "loss", "group", "constant"] = "perceptron"
    """What gives weights: the perceptron, an MLP on the loss, the source category, one γ."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """The optimizer of the weighter."""
    lr: float = 2e-3
    """Its learning rate."""
    weight_decay: float = 0.0
    """Its weight decay."""
    decay_gamma: bool = True
    """Whether weight decay acts on the perceptron's global γ too."""
    clip: float | None = None
    """Largest norm of the hypergradient; None: as it is."""
    interval: int = 5
    """Inner steps between two outer steps."""
    weights_ahead: int = 1
    """At most so many batches get their weights in one call of the perceptron, never past the next
    outer step: their histories are embedded by the model as it is at the first of them, while the
    perceptron is the current one. Much faster where outer steps are rare. 1: in every step anew,
    as the other weighters always do."""
    batch_size: int = 512
    """Target behaviours in the train batch and in the dev batch of an outer step."""
    dev: Literal["same-users", "reshuffled", "in-order", "split", "split-users"] = "same-users"
    """Dev batches: other rows of the same users, reorder-and-reuse, the authors' fixed order, rows
    held out from training, or rows held out beside others of the same users."""
    split: float = 0.05
    """With --outer.dev split and split-users: the share of the training rows that is held out."""
    solver: Literal["neumann", "cg", "identity"] = "neumann"
    """How the inverse Hessian is applied; identity takes no curvature into account."""
    num_terms: int = 3
    """Terms of the Neumann series after the first (K)."""
    step_size: float | Literal["auto"] = "auto"
    """Step size of the series (α); auto: one over the largest curvature met."""
    calibrated: bool = False
    """Whether the dev loss is that of calibrated predictions, which a model's overconfidence does
    not enter."""
    heads: bool = True
    """Whether the prediction heads are among the parameters differentiated through."""
    dev_head_steps: int = 100
    """With an extra dev head: its training steps before each outer step."""
    dev_head_batch_size: int = 256
    """With an extra dev head: the batch size of those steps."""

    def __post_init__(self) -> None:
        positive("outer", self, "lr", "clip")
        at_least(0, "outer", self, "weight_decay", "num_terms", "dev_head_steps")
        at_least(1, "outer", self, "interval", "weights_ahead", "batch_size", "dev_head_batch_size")
        if self.step_size != "auto":
            positive("outer", self, "step_size")
        share("outer", self, "split")

    def hypergradient(self) -> ImplicitHypergradient:
        """The solver these options describe."""
        if self.solver == "cg":
            return ImplicitHypergradient(ConjugateGradient(self.num_terms + 1))
        if self.solver == "identity":
            return ImplicitHypergradient(
                Identity(1.0 if self.step_size == "auto" else self.step_size)
            )
        return ImplicitHypergradient(Neumann(self.num_terms, self.step_size))


@dataclass(frozen=True)
class SearchOptions:
    """How weights are learned on which a new model is then trained."""

    lr: float = 7e-4
    """The weighter's learning rate, in the place of --outer.lr."""
    inner_lr: float = 2e-3
    """The model's, in the place of --inner.lr; a model that overfits its rows gives no signal."""
    epochs: int = 10
    """As many, whatever the model's validation AUC: the weights are those after the last one. With
    crossfit, within which outer steps begin; twice as many at most."""
    split: float = 0.2
    """The share of the training rows that is held out, for dev batches of the same users."""
    folds: int = 4
    """With the variants that train a model without each fold of the training rows: how many."""
    batch_size: int = 2048
    """With crossfit, in the place of --outer.batch_size: a weak signal is seen in many rows."""
    solver: Literal["neumann", "cg", "identity"] = "identity"
    """With crossfit, in the place of --outer.solver."""

    def __post_init__(self) -> None:
        positive("search", self, "lr", "inner_lr")
        at_least(2, "search", self, "folds")
        at_least(1, "search", self, "epochs", "batch_size")
        share("search", self, "split")


@dataclass(frozen=True)
class PerceptronOptions:
    """The behavioral perceptron."""

    history: int = 20
    """Positive behaviours of each domain that it sees."""
    behavior_inputs: tuple[Fact, ...] = ()
    """What it sees of a behaviour beside the item: its label, its item's popularity, its recency
    among the user's own, the share of positives of its item. The paper's sees none of them."""
    heads: int = 4
    """Heads of each attention."""
    global_branch: bool = True
    """Whether a behaviour counts by its item alone."""
    local_branch: bool = True
    """Whether a behaviour counts by the user's histories."""
    global_hidden: tuple[int, ...] = (32,)
    """Hidden widths of the global branch's MLP; empty: one linear layer."""
    local_hidden: tuple[int, ...] = (32,)
    """Hidden widths of the local branch's MLP."""
    global_bias: float = 1.0
    """Constant added to the global importance, which keeps the product of the two off a saddle."""
    normalization: Literal["sigmoid", "centered", "softmax"] = "centered"
    """σ of Eq. 8: sigmoid, sigmoid around the batch mean, or softmax over the batch."""
    mask_keys: bool = True
    """Whether pads are kept out of the attention and of the mean."""
    gamma_map: Literal["softplus", "relu"] = "softplus"
    """How the global γ is kept from turning negative."""

    def __post_init__(self) -> None:
        at_least(1, "perceptron", self, "history", "heads")
        widths("perceptron", self, "global_hidden", "local_hidden")
        if len(set(self.behavior_inputs)) < len(self.behavior_inputs):
            refuse("perceptron", "behavior_inputs", self.behavior_inputs, "name each once")
        if not (self.global_branch or self.local_branch):
            refuse("perceptron", "local_branch", False, "one of the two branches has to stay")
        if not math.isfinite(self.global_bias):
            refuse("perceptron", "global_bias", self.global_bias, "it must be a finite number")

    @property
    def fact_columns(self) -> int:
        """How many numbers of a behaviour it sees beside the item's embedding.

        Some may be left at 0: the width of the attention has to stay a multiple of its heads.
        """
        return math.ceil(len(self.behavior_inputs) / self.heads) * self.heads


@dataclass(frozen=True)
class Options:
    """Model, inner and outer training, search, perceptron."""

    model: ModelOptions = field(default_factory=lambda: MODELS["conet"].Options())
    inner: InnerOptions = field(default_factory=InnerOptions)
    outer: OuterOptions = field(default_factory=OuterOptions)
    search: SearchOptions = field(default_factory=SearchOptions)
    perceptron: PerceptronOptions = field(default_factory=PerceptronOptions)

    def __post_init__(self) -> None:
        if self.inner.source_batch == "independent" and self.model_class.pairs_users:
            refuse(
                "inner",
                "source_batch",
                "independent",
                f"{self.model_class.label} reads the source behaviour of the same user beside each "
                "target row; leave it paired",
            )
        # Item and category, of the behaviour and of the candidate.
        width = 4 * self.model.dim
        if width % self.perceptron.heads:
            fitting = ", ".join(str(n) for n in range(1, width + 1) if width % n == 0)
            refuse(
                "perceptron",
                "heads",
                self.perceptron.heads,
                f"it must divide the attention's width of four times --model.dim, {width}; "
                f"choose one of {fitting}",
            )

    def changed(self, changes: Mapping[str, Any]) -> Options:
        """The options with others in the place of some.

        Args:
            changes: By dotted name, as ``{"inner.lr": 1e-3}``.
        """
        sections: dict[str, dict[str, Any]] = {}
        for name, value in changes.items():
            section, _, field_name = name.partition(".")
            sections.setdefault(section, {})[field_name] = value
        return replace(
            self, **{name: replace(getattr(self, name), **of) for name, of in sections.items()}
        )

    @property
    def model_name(self) -> str:
        """The name of the model that `model` belongs to."""
        return next(n for n, m in MODELS.items() if m.Options is type(self.model))

    @property
    def model_class(self) -> type[CrossDomainModel]:
        """The model that `model` belongs to."""
        return MODELS[self.model_name]
