"""A user's modules in float64 while they are checked, and as they were afterwards.

The check works on the modules themselves: closures, lists, solvers and losses hold them too, and
some modules can't be copied.
"""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from reweight._tensors import widened_in_place

_CONTAINERS = (list, dict, set, deque, OrderedDict, defaultdict)
# Attributes that every module has; parameters and buffers are found in another way.
_OF_ALL_MODULES = vars(nn.Module()).keys()


class Borrowed:
    """What an isolated evaluation may still change in modules, with a way to put it back.

    That is the values of parameters and of plain tensors, gradients, and what lies in lists, dicts
    and sets of the modules.
    """

    def __init__(self, parts: list[nn.Module]) -> None:
        self._parts = parts
        plain = [
            value
            for part in self._parts
            for name, value in vars(part).items()
            if name not in _OF_ALL_MODULES
        ]
        self._contents = [(x, copy.copy(x)) for x in plain if type(x) in _CONTAINERS]
        self._tensors = [
            *(t for part in self._parts for t in (*part.parameters(False), *part.buffers(False))),
            *(x for x in plain if isinstance(x, Tensor)),
        ]
        self._gradients: list[tuple[Tensor, Tensor | None]] = []

    @contextmanager
    def in_double(self, others: Iterable[Tensor]) -> Iterator[None]:
        """Give the tensors of the modules, and ``others``, float64 values of their own.

        Afterwards they have their own storage again, whatever was written meanwhile.
        """
        try:
            with self.also_in_double([*self._tensors, *others]):
                yield
        finally:
            self.restore()
            for tensor, grad in self._gradients:
                tensor.grad = grad

    @contextmanager
    def also_in_double(self, tensors: Iterable[Tensor]) -> Iterator[None]:
        """The same for tensors that were found later."""
        known = {id(tensor) for tensor, _ in self._gradients}
        leaves = {id(t): t for t in tensors if t.is_leaf and id(t) not in known}
        own = [t for t in leaves.values() if not (is_lazy(t) or t.is_inference())]
        self._gradients += [(tensor, tensor.grad) for tensor in own]
        self.restore()
        with ExitStack() as stack:
            stack.enter_context(widened_in_place(own))
            for tensor in own:
                if tensor.layout is torch.strided:
                    stack.callback(setattr, tensor, "data", tensor.data)
                    tensor.data = tensor.data.clone()
            yield

    def restore(self) -> None:
        """Take away what the last evaluation left in gradients, lists, dicts and sets."""
        for tensor, _ in self._gradients:
            tensor.grad = None
        for container, before in self._contents:
            container.clear()
            (container.update if hasattr(container, "update") else container.extend)(before)

    def copied(self, solver: Any) -> Any:
        """A copy of a solver, which may remember things, for the same modules and tensors."""
        shared = (*self._parts, *self._tensors)
        try:
            return copy.deepcopy(solver, {id(x): x for x in shared})
        except Exception:  # it holds a lock or a graph: it is used itself
            return solver
