"""The variants of a model: what each leaves out, adds or weighs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from cdr.training.options import Options


@dataclass(frozen=True)
class Plan:
    """What tells one variant from another.

    Attributes:
        label: What follows the model's name in a table.
        source: How source losses count: "none" (there is no source branch), "mean" (their mean,
            times `gamma`), "learned", or "fixed" (by given weights).
        gamma: With "mean"; None takes --inner.gamma.
        weights: With "fixed": the true flags, those that the `teacher` of the same seed has found,
            the latter permuted, or those that are found before the training, on folds: by
            cross-fitting, by influence, or by held-out loss (:mod:`cdr.training.procedure`).
        teacher: The variant whose weights it takes, if it does.
        change: Of the options, to those the variant is trained with.
        keeps_last: Whether what comes out is the last epoch's, not that of the best model.
    """

    label: str
    source: Literal["none", "mean", "learned", "fixed"]
    gamma: float | None = None
    weights: (
        Literal["flags", "learned", "permuted", "crossfit", "influence", "held-out-loss"] | None
    ) = None
    teacher: str | None = None
    change: Callable[[Options], Options] = lambda options: options
    keeps_last: bool = False

    @property
    def weighted(self) -> bool:
        """Whether every source behaviour has a weight of its own."""
        return self.source in ("learned", "fixed")

    def source_weight(self, gamma: float) -> float:
        """The weight of the mean source loss.

        Args:
            gamma: ``--inner.gamma``, for the variants without a weight of their own.
        """
        if self.gamma is not None:
            return self.gamma
        return gamma if self.source == "mean" else 0.0

    @property
    def finds(self) -> bool:
        """Whether weights are found on folds, before a model is trained with them."""
        return self.weights in ("crossfit", "influence", "held-out-loss")


def _changed(name: str, value: object) -> Callable[[Options], Options]:
    return lambda options: options.changed({name: value})


def _search(options: Options) -> Options:
    """Held-out rows stay informative however long the training takes: no early stopping."""
    search = options.search
    return options.changed(
        {
            "inner.lr": search.inner_lr,
            "inner.epochs": search.epochs,
            "inner.patience": search.epochs,
            "outer.dev": "split-users",
            "outer.split": search.split,
            "outer.lr": search.lr,
        }
    )


def _split_off(ratio: float) -> Callable[[Options], Options]:
    return lambda options: options.changed({"outer.dev": "split", "outer.split": ratio})


def _permuted(label: str, teacher: str) -> Plan:
    """The control: weights of the same sizes, which say nothing of the behaviours."""
    return Plan(label, "fixed", weights="permuted", teacher=teacher)


VARIANTS = {
    "S": Plan("-S", "none"),
    "0": Plan("-0", "mean", gamma=0.0),
    "base": Plan("", "mean"),
    "ours": Plan("+ours", "learned"),
    "no-global": Plan(
        "+ours w/o global", "learned", change=_changed("perceptron.global_branch", False)
    ),
    "no-user": Plan("+ours w/o user", "learned", change=_changed("perceptron.local_branch", False)),
    "search": Plan("+ours, search", "learned", change=_search, keeps_last=True),
    "retrain": Plan("+ours retrained", "fixed", weights="learned", teacher="search"),
    "random": _permuted("+ours permuted", "search"),
    "crossfit": Plan("+ours crossfit", "fixed", weights="crossfit"),
    "crossfit-random": _permuted("+ours crossfit permuted", "crossfit"),
    "influence": Plan("+influence", "fixed", weights="influence"),
    "influence-random": _permuted("+influence permuted", "influence"),
    "held-out-loss": Plan("+held-out loss", "fixed", weights="held-out-loss"),
    "held-out-loss-random": _permuted("+held-out loss permuted", "held-out-loss"),
    "loss": Plan("+LossWeighter", "learned", change=_changed("outer.weighter", "loss")),
    "group": Plan("+GroupWeighter", "learned", change=_changed("outer.weighter", "group")),
    "constant": Plan("+ConstantWeighter", "learned", change=_changed("outer.weighter", "constant")),
    "oracle": Plan("+oracle", "fixed", weights="flags"),
}
_SPLIT = "split-"


def plan(variant: str) -> Plan:
    """The variant of a name: one of :data:`VARIANTS`, or "split-0.05" and the like, which holds
    that share of the training rows out for the outer problem.

    Raises:
        ValueError: If there is no such variant.
    """
    if variant in VARIANTS:
        return VARIANTS[variant]
    if variant.startswith(_SPLIT):
        try:
            ratio = float(variant[len(_SPLIT) :])
        except ValueError:
            ratio = 0.0
        if 0 < ratio < 1:
            return Plan(f"+ours split {ratio:g}", "learned", change=_split_off(ratio))
    raise ValueError(
        f"--variants {variant}: there is no such variant; there are {', '.join(VARIANTS)}, and "
        f"{_SPLIT}RATIO with a ratio between 0 and 1"
    )


def variant_label(variant: str) -> str:
    """What follows the model's name in a table."""
    return plan(variant).label


def check_variants(variants: tuple[str, ...]) -> None:
    """Raise unless each is known and named once, and what learned weights need is there.

    Raises:
        ValueError: Naming the variant.
    """
    if len(set(variants)) < max(1, len(variants)):
        raise ValueError(f"--variants {' '.join(variants)}: name at least one, and each once.")
    for variant in variants:
        teacher = plan(variant).teacher
        if teacher is not None and teacher not in variants:
            raise ValueError(
                f"--variants {variant}: it takes the weights that {teacher} has learned; "
                f"add {teacher}"
            )
