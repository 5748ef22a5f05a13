"""The inner loss as a function of the model's outputs, and the ways to its Gauss-Newton matrix."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from reweight._curvature.gauss_newton import (
    Forward,
    OutputHessian,
    Outputs,
    gauss_newton,
    jacobian_by_differences,
    jacobian_by_func,
    jacobian_of_graph,
    pull_of_graph,
)
from reweight._curvature.layered import LayeredJacobian
from reweight._curvature.linearise import Linearisation, Mode
from reweight._curvature.sample_space import solved_in_sample_space
from reweight._tables import GraphInputs, Table
from reweight._tensors import Tree


@dataclass(frozen=True)
class Stated:
    """The inner loss as a function of the model's outputs, as the user stated it.

    Attributes:
        outputs: as they were evaluated, with their graph.
        loss: the inner loss, with its graph from them.
        function: gives the outputs as a pure function; called by mode ``"func"``.
        moved: gives the outputs at other values of θ, without a graph; called by mode
            ``"finite_difference"``.
        by_layers: whether the system is solved in the space of the samples.
    """

    outputs: Outputs
    loss: Tensor
    function: Callable[[], Forward]
    moved: Callable[[], Forward]
    by_layers: bool = False

    def linearise(
        self, mode: Mode, params: Tree, hparams: Tree, tables: Mapping[str, Table]
    ) -> Linearisation:
        """The Gauss-Newton matrix, in this mode."""
        curvature = OutputHessian(self.loss, self.outputs, hparams)
        if self.by_layers:
            return self._by_layers(curvature, params, tables)
        if mode == "autograd":
            jacobian = jacobian_of_graph(self.outputs, params, tables)
        elif mode == "func":
            jacobian = jacobian_by_func(self.function())
        else:
            moved = self.moved()
            inputs = GraphInputs({name: params[name] for name in moved.params}, tables)
            jacobian = jacobian_by_differences(moved, pull_of_graph(self.outputs, inputs))
        return gauss_newton(jacobian, curvature)

    def _by_layers(
        self, curvature: OutputHessian, params: Tree, tables: Mapping[str, Table]
    ) -> Linearisation:
        layered = LayeredJacobian(self.outputs, self.loss, params, tables)
        inputs = GraphInputs({name: params[name] for name in layered.layers}, tables)
        pull = pull_of_graph(self.outputs, inputs)

        def inverse(b: Tree, shift: Mapping[str, float], out: Tree) -> float:
            return solved_in_sample_space(layered, curvature, pull, self.outputs, b, shift, out)

        return replace(gauss_newton(layered.jacobian(), curvature), inverse=inverse)
