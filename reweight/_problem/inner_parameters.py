"""Which tensors the inner problem moves, and the weight decay that moves them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from reweight._tensors import Tree


class InnerParameters:
    """The rule that says what is inner, applied anew at every outer step.

    θ is what the optimizers hold and move: leaves that require a gradient, in a group with a
    learning rate above 0, wherever they live. Without an optimizer it is every trainable parameter
    of the model. Where all learning rates are 0, as in the first step of a warm-up, all groups
    count as moved.

    Args:
        model: the model.
        optimizers: the inner optimizers, only read.
        keep: ``name -> bool``, chooses among the trainable parameters of the model and what the
            optimizers hold besides; ``None``: the rule above.
        companions: further modules, for the names of their tensors.
        weighter: its parameters are never inner, also where it is a part of the model.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        keep: Callable[[str], bool] | None,
        companions: Mapping[str, nn.Module],
        weighter: nn.Module,
    ) -> None:
        self._model, self._optimizers, self._keep = model, optimizers, keep
        self._companions, self._weighter = companions, weighter
        self._weighter_inside = any(part is weighter for part in model.modules())

    def theta(self) -> Tree:
        """The inner parameters by name: that in the model, or else where they were found."""
        left_out = {id(p) for p in self._weighter.parameters()} if self._weighter_inside else set()
        own: Tree = {
            name: p
            for name, p in self._model.named_parameters()
            if p.requires_grad and id(p) not in left_out
        }
        if not self._optimizers:
            return own if self._keep is None else {n: p for n, p in own.items() if self._keep(n)}
        moved = _moved(self._optimizers)
        inside = {id(p) for p in own.values()}
        further = self._elsewhere([p for key, p in moved.items() if key not in inside], own)
        if self._keep is not None:
            return {n: p for n, p in (own | further).items() if self._keep(n)}
        return {n: p for n, p in own.items() if id(p) in moved} | further

    def _elsewhere(self, moved: Sequence[Tensor], own: Tree) -> Tree:
        """Those of some tensors that are not the weighter's, by names that are not in ``own``."""
        if not moved:
            return {}
        weighters = {id(p) for p in self._weighter.parameters()}
        named = self.named(p for p in moved if id(p) not in weighters)
        return {f"{n} (outside of the model)" if n in own else n: p for n, p in named.items()}

    def weight_decay(self, theta: Tree) -> dict[str, float]:
        """The curvature that the optimizers' weight decay gives each inner parameter, by name.

        An optimizer with coupled weight decay ``λ`` descends ``inner + ½λ‖θ‖²``, which no graph of
        the inner loss shows; its Hessian is ``H + λI``. Decoupled decay counts as the same ``λ``,
        which is exact for SGD and an approximation for the adaptive steps of AdamW. The value is
        read at every outer step, because schedules change it.

        Raises:
            ValueError: a parameter is maximised.
        """
        groups = {id(p): group for group, p in reversed(list(_entries(self._optimizers)))}
        found = {name: groups.get(id(p), {}) for name, p in theta.items()}
        if any(group.get("maximize") for group in found.values()):
            raise ValueError(
                "the optimizer has maximize=True, but the inner problem is a minimisation: negate "
                "the loss and leave maximize off"
            )
        return {n: float(group.get("weight_decay") or 0.0) for n, group in found.items()}

    def named(self, tensors: Iterable[Tensor]) -> Tree:
        """Tensors by their names in the model or another module, or else by where they are."""
        names = _places(self._optimizers)
        for label, module in (*self._companions.items(), ("", self._model)):
            prefix = f"{label}." if label else ""
            for name, tensor in (*module.named_buffers(), *module.named_parameters()):
                names[id(tensor)] = prefix + name
        found: Tree = {}
        for tensor in tensors:
            name = names.get(id(tensor)) or f"a tensor of shape {tuple(tensor.shape)}"
            found[f"{name} (no. {len(found) + 1})" if name in found else name] = tensor
        return found


def held(optimizers: Iterable[Optimizer]) -> set[int]:
    """The ``id`` of every tensor that optimizers hold, moved or not."""
    return {id(p) for _, p in _entries(optimizers)}


def _entries(optimizers: Iterable[Optimizer]) -> Iterator[tuple[dict[str, Any], Tensor]]:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for p in group["params"]:
                yield group, p


def _places(optimizers: Sequence[Optimizer]) -> dict[int, str]:
    """Where in the optimizers each tensor is, by its ``id``."""
    found: dict[int, str] = {}
    for k, optimizer in enumerate(optimizers):
        which = f"optimizer[{k}]" if len(optimizers) > 1 else "optimizer"
        for g, group in enumerate(optimizer.param_groups):
            for i, p in enumerate(group["params"]):
                found[id(p)] = f"{which}.param_groups[{g}]['params'][{i}]"
    return found


def _moved(optimizers: Sequence[Optimizer]) -> dict[int, Tensor]:
    """What the optimizers hold and move, by ``id``."""
    moving: dict[int, Tensor] = {}
    resting: dict[int, Tensor] = {}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            into = moving if _rate(group) > 0.0 else resting
            into.update((id(p), p) for p in group["params"] if p.requires_grad)
    return moving or resting


def _rate(group: dict[str, Any]) -> float:
    rate = group.get("lr")
    # An optimizer that has no learning rate, or finds its own, moves all that it holds.
    return 1.0 if rate is None else float(rate)
