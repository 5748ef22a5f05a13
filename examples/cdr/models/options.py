"""The shape of a recommendation model."""

from __future__ import annotations

from dataclasses import dataclass

from cdr.checking import at_least, positive, refuse, widths


@dataclass(frozen=True)
class ModelOptions:
    """Widths and initialisation of the recommendation model."""

    dim: int = 10
    """Width of each embedding (user, item, category)."""
    hidden: tuple[int, ...] = (64, 32, 16, 8)
    """Widths of the tower's layers."""
    cross_layers: int = 2
    """How many of them, from below, exchange activations with the other domain."""
    bias: bool = True
    """Whether layers have biases."""
    init_std: float = 0.3
    """Standard deviation of the initial embeddings."""
    dev_head: bool = False
    """An extra target head for the outer loss, trained apart before each outer step."""

    def __post_init__(self) -> None:
        at_least(1, "model", self, "dim")
        widths("model", self, "hidden")
        positive("model", self, "init_std")
        if not 0 <= self.cross_layers <= len(self.hidden):
            refuse(
                "model",
                "cross_layers",
                self.cross_layers,
                f"the tower has {len(self.hidden)} layers (--model.hidden)",
            )
