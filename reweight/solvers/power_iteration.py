"""The largest curvature by power iteration."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from reweight._trees import norm
from reweight.solvers._check import whole


class PowerIteration:
    """An estimate of ``λmax`` that is kept warm from one solve to the next.

    Each call multiplies a remembered direction ``num_steps`` times with the operator; between two
    outer steps the operator hardly changes, so a step or two keep up with it. The first call, and
    any after a change of size, type or device, starts from random numbers of its own generator and
    takes ``first_steps``. With embedding tables, of which every batch reads other rows, that is
    nearly every call.

    It remembers, so a hypergradient that uses it depends on the calls before: unlike
    ``Neumann(step_size="auto")``, which needs no products of its own, remembers nothing, and is
    the better choice unless α should hardly change between outer steps. Give each wrapped model an
    instance of its own.

    Args:
        num_steps: products a call, once warm.
        first_steps: products of the first call.
        seed: of the first direction.

    Example:
        >>> import torch
        >>> A = torch.tensor([[1.0, 0.0], [0.0, 4.0]])
        >>> largest = PowerIteration()
        >>> round(largest(lambda v: A @ v, torch.ones(2)), 3)
        4.0
    """

    def __init__(self, num_steps: int = 2, first_steps: int = 10, seed: int = 0) -> None:
        whole("PowerIteration", "num_steps", num_steps, 1)
        whole("PowerIteration", "first_steps", first_steps, 1)
        whole("PowerIteration", "seed", seed, 0)
        self.num_steps = num_steps
        self.first_steps = first_steps
        self.seed = seed
        self._direction: Tensor | None = None

    def __repr__(self) -> str:
        return (
            f"PowerIteration(num_steps={self.num_steps}, first_steps={self.first_steps}, "
            f"seed={self.seed})"
        )

    def __call__(self, matvec: Callable[[Tensor], Tensor], like: Tensor) -> float:
        """The size of the largest eigenvalue, from below; 0 for a zero operator.

        Args:
            matvec: ``v -> A v``, symmetric.
            like: a tensor of the shape, type and device of ``v``.
        """
        direction, num_steps = self._direction, self.num_steps
        if direction is None or (direction.shape, direction.dtype, direction.device) != (
            like.shape,
            like.dtype,
            like.device,
        ):
            generator = torch.Generator().manual_seed(self.seed)
            direction = torch.randn(like.shape, generator=generator, dtype=torch.float64)
            direction = (direction / norm(direction)).to(like)
            num_steps = self.first_steps
        size = 0.0
        for _ in range(num_steps):
            product = matvec(direction)
            size = norm(product)
            if size == 0.0:
                self._direction = None
                return 0.0
            direction = product * (1.0 / size)
        self._direction = direction
        return size
