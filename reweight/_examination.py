"""Each way to multiply with the Hessian of a model, looked at once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from reweight._isolation import Isolation, is_compiled, twice_differentiable
from reweight._linearise import Linearisation, Mode, from_graph, with_func
from reweight._operator import Unserved
from reweight._point import Point
from reweight._replaced import Replaced
from reweight._rows import Table, tables_of
from reweight._second_derivatives import Disagreement, disagreement
from reweight._trees import Tree, doubled, filled, map_tensors

logger = logging.getLogger("reweight")

# The comparison needs float64 copies of the model, a few times.
_LARGEST = 20_000_000


class InDouble:
    """The inner problem of a model in float64, at some weights.

    Args:
        point: where the model stands.
        loss: ``(batch, weights) -> []``, by the model.
        batch: as the user handed it over.
        weights: of the samples.
        isolation: that the model is evaluated in.
    """

    def __init__(
        self,
        point: Point,
        loss: Callable[[Any, Tensor], Tensor],
        batch: Any,
        weights: Tensor,
        isolation: Isolation,
    ) -> None:
        self._point, self._loss, self._isolation = point, loss, isolation
        self._batch, self._weights = batch, weights

    def _padding(self, point: Point) -> dict[str, int]:
        """The rows of whole tables that get no gradient, by decree: constants, no parameters."""
        rows = {
            id(module.weight): module.padding_idx
            for module in point.model.modules()
            if isinstance(module, (nn.Embedding, nn.EmbeddingBag))
        }
        found = {n: rows.get(id(p)) for n, p in point.theta.items() if n not in point.tables}
        return {name: row for name, row in found.items() if row is not None}

    def _idle(self, point: Point) -> dict[str, Table]:
        """Inner tables that the loss may read, but does not depend on."""
        tables = tables_of(point.model, self._point.theta)
        return {name: Table.unread(t) for name, t in tables.items() if name not in point.theta}

    def _copied(self, point: Point) -> list[Tensor]:
        """The parameters that are doubled beside those of the point."""
        idle = [table.weight for table in self._idle(point).values()]
        inner = {id(p) for p in (*point.theta.values(), *idle)}
        return [p for p in point.model.parameters() if id(p) not in inner]

    def too_costly(self, names: tuple[str, ...]) -> str:
        """Why it should not be evaluated over some parameters, or nothing."""
        if is_compiled(self._point.model):
            return "a compiled model would be compiled anew for float64"
        point = self._point.only(names)
        tensors = [*point.values().values(), *self._copied(point), *point.model.buffers()]
        size = sum(t.numel() for t in tensors)
        return f"{size} parameters and buffers would be copied in float64" * (size > _LARGEST)

    def disagreement(self, mode: Mode, names: tuple[str, ...]) -> Disagreement | None:
        """Between products in the mode and differences of gradients, over some parameters."""
        point = self._point.only(names)
        product, evaluate = self._functions(mode, point)
        params = {name: p.detach().double() for name, p in point.values().items()}
        return disagreement(product, evaluate, params, self._padding(point))

    def _functions(
        self, mode: Mode, point: Point
    ) -> tuple[Callable[[Tree, Tree], Tree], Callable[[Tree], tuple[float, Tree]]]:
        """``(θ, v) -> H v`` in the mode, and ``θ -> (inner, ∇inner)``."""
        batch = map_tensors(doubled, self._batch)
        weights = self._weights.detach().double()
        frozen = {id(p): doubled(p.detach()) for p in self._copied(point)}
        idle = self._idle(point)
        constants = {name: doubled(table.values()) for name, table in idle.items()}

        @contextmanager
        def installed(params: Tree) -> Iterator[None]:
            with (
                point.at(params, frozen, lambda buffer: doubled(buffer.clone())),
                Replaced(idle, constants),
            ):
                yield

        def loss() -> Tensor:
            self._isolation.rewind()
            with twice_differentiable():
                return self._loss(batch, weights)

        def installed_loss(params: Tree, hparams: Tree) -> Tensor:
            with installed(params):
                return loss()

        def product(params: Tree, v: Tree) -> Tree:
            if mode == "func":
                return with_func(installed_loss, params, {}).hvp(v)
            # Installed during the backward passes too: a checkpointed module runs again in them.
            with installed(params):
                linearisation = from_graph(loss(), params, {})
                entries = linearisation.hvp({n: v[n] for n in linearisation.params})
            return filled((entries.get(name) for name in params), params)

        def evaluate(params: Tree) -> tuple[float, Tree]:
            with installed(params):
                value = loss()
                grads = torch.autograd.grad(value, list(params.values()), allow_unused=True)
            return float(value.detach()), filled(grads, params)

        return product, evaluate


class Examination:
    """What is known of the ways to multiply with a model's Hessian.

    Attributes:
        ruled_out: modes that do not serve, and why.
        caveats: what is wrong in modes that are used all the same, in words.
        compared: modes that were looked at, or could not be.
    """

    def __init__(self) -> None:
        self.ruled_out: dict[Mode, BaseException] = {}
        self.caveats: dict[str, str] = {}
        self.compared: set[Mode] = set()

    def look(
        self, mode: Mode, linearisation: Linearisation, problem: InDouble, *, auto: bool
    ) -> None:
        """Compare second derivatives with differences of first ones, once for each mode.

        Args:
            mode: that the linearisation was made in.
            linearisation: of the inner problem as it is used.
            problem: the same in float64.
            auto: whether another mode may take the place of this one.

        Raises:
            Unserved: they are wrong, and another mode may do.
        """
        if mode in self.compared or linearisation.doubt is not None:
            return  # compared already, or made of differences itself
        found = None
        if reason := problem.too_costly(linearisation.params):
            logger.info("hvp mode %r is not compared with finite differences: %s", mode, reason)
        else:
            try:
                found = problem.disagreement(mode, linearisation.params)
            except Exception as error:  # losses that make float32 tensors of their own, and more
                logger.info(
                    "hvp mode %r could not be compared with differences: %s", mode, str(error)
                )
        self.compared.add(mode)
        if found is None:
            return
        by = f"by {found.share:.2g} of its size for {found.name}"
        if not found.of_the_loss:
            self.caveats[mode] = (
                "the gradients of the inner loss are not its derivatives (nor are the products "
                f"with its Hessian, {by}): is there a detach() inside the losses, a "
                "straight-through or a reversed gradient? The formula then holds for another "
                "problem than the one that is trained"
            )
        elif auto:
            # Now, and not when another mode has served: whatever happens in between, this one
            # is not to be tried again.
            self.ruled_out[mode] = RuntimeError(
                f"its second derivatives are wrong {by}, as differences of gradients show"
            )
            raise Unserved(self.ruled_out[mode])
        else:
            self.caveats[mode] = (
                f"second derivatives in hvp mode {mode!r} are wrong {by}, as differences of "
                'gradients show; use hvp="auto", which goes on to another mode'
            )
