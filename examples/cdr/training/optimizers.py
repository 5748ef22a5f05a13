"""An Adam whose cost does not grow with the embedding tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adam import adam


class LazyAdam(Optimizer):
    """Adam that touches only the rows of a table that the batch looked up.

    A table is a parameter whose gradient is sparse, as of ``nn.Embedding(sparse=True)``. Parameters
    with dense gradients get torch's fused Adam. Of a table, the rows in the gradient are taken out,
    go through the same fused update, and are put back: a step costs what its batch costs, whatever
    the number of rows. (The two moments, as large as the table, are made once.)

    The result is not that of dense Adam. There, a row that is not looked up still moves along its
    first moment, its moments fade, and weight decay pulls at it; here it stays as it is, moments
    included, until a batch looks it up again, so that decay acts on a row as often as it is used.
    A learning rate and a weight decay that suit dense Adam do not suit this one: expect larger
    ones. Where every batch looks up every row, the two agree.

    The bias correction counts the steps of the table, not of the row, as in dense Adam: a row that
    is first looked up late moves by (1 − β₁)/√(1 − β₂) learning rates, 3.2 with the default betas.
    TensorFlow calls this variant LazyAdam; ``torch.optim.SparseAdam`` is the same for tables alone,
    without weight decay.

    Finding the rows of a table waits for the GPU: a step with tables is not one to capture as a
    CUDA graph.

    Args:
        params: Parameters, or groups of them with numbers of their own.
        lr: Learning rate, at least 0.
        betas: Decay of the first and of the second moment, each in [0, 1).
        eps: Added to the root of the second moment, at least 0.
        weight_decay: Coupled, that is added to the gradient as by ``torch.optim.Adam``; at least 0.

    Raises:
        ValueError: A number out of its range.

    Example:
        >>> table = torch.nn.Embedding(1000, 2, sparse=True)
        >>> before = table.weight.detach().clone()
        >>> optimizer = LazyAdam(table.parameters(), lr=0.1, weight_decay=1e-4)
        >>> table(torch.tensor([3, 7, 3])).sum().backward()
        >>> optimizer.step()
        >>> (table.weight != before).any(1).nonzero().flatten().tolist()
        [3, 7]
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        # By "fused", load_state_dict knows to put step counts where the parameters are.
        super().__init__(params, {**defaults, "fused": True})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters; numbers left out are those the optimizer was made with."""
        _check_numbers({**self.defaults, **param_group})
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """Update what has a gradient.

        Raises:
            ValueError: A complex parameter, or a gradient that is sparse in more than its rows.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step_group(group)
        return loss

    def _step_group(self, group: dict[str, Any]) -> None:
        operands: list[tuple[Tensor, ...]] = []
        looked_up: list[tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]] = []
        for param in group["params"]:
            if param.grad is None:
                continue
            state = self._state_of(param)
            grad: Tensor = param.grad
            wholes: tuple[Tensor, ...] = (param, state["exp_avg"], state["exp_avg_sq"])
            parts = wholes
            if grad.is_sparse:
                rows, grad = _rows(param)
                parts = tuple(whole.index_select(0, rows) for whole in wholes)
                looked_up.append((rows, wholes, parts))
            operands.append((grad, *parts, state["step"]))
        if not operands:
            return
        grads, params, exp_avgs, exp_avg_sqs, steps = map(list, zip(*operands, strict=True))
        adam(
            params,
            grads,
            exp_avgs,
            exp_avg_sqs,
            [],
            steps,
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        for rows, wholes, parts in looked_up:
            for whole, part in zip(wholes, parts, strict=True):
                whole.index_copy_(0, rows, part)

    def _state_of(self, param: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[param]
        if not state:
            if not param.is_floating_point():
                raise ValueError(
                    f"LazyAdam got a parameter of {param.dtype}: torch's fused Adam takes real "
                    "floating-point ones; hold the real and the imaginary part as two"
                )
            # On the parameter's device and in float32, as fused kernels read it.
            state["step"] = torch.zeros((), dtype=torch.float32, device=param.device)
            state["exp_avg"] = torch.zeros_like(param)
            state["exp_avg_sq"] = torch.zeros_like(param)
        return state


def _rows(table: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct rows in the gradient, long [n], and their gradients, [n, ...]."""
    assert table.grad is not None
    if table.grad.sparse_dim() != 1:
        raise ValueError(
            f"the gradient of a parameter of shape {list(table.shape)} is sparse in "
            f"{table.grad.sparse_dim()} dimensions; LazyAdam updates whole rows, as "
            "nn.Embedding(sparse=True) gives them. Make the gradient dense: "
            "param.register_hook(lambda grad: grad.to_dense())"
        )
    # Coalesced, since the square of a sum is not the sum of squares.
    grad = table.grad.coalesce()
    return grad.indices()[0], grad.values()


def _check_numbers(group: dict[str, Any]) -> None:
    for name in ("lr", "eps", "weight_decay"):
        if not group[name] >= 0.0:  # NaN too
            raise ValueError(f"LazyAdam({name}={group[name]}): it must be 0 or more")
    if not all(0.0 <= beta < 1.0 for beta in group["betas"]):
        raise ValueError(
            f"LazyAdam(betas={group['betas']}): each must be at least 0 and below 1; "
            "(0.9, 0.999) is usual"
        )
