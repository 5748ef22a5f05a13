"""What the recorded graph of a loss says about it."""

from __future__ import annotations

from torch import Tensor


def refuse_reentrant(name: str, loss: Tensor) -> None:
    """Raise where a part of the graph is checkpointed the reentrant way.

    ``torch.autograd.grad`` gives ``None`` for every parameter inside such a part, without a word.
    """
    waiting, seen = [loss.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() == "CheckpointFunctionBackward":
            raise ValueError(
                f"{name} runs through torch.utils.checkpoint with use_reentrant=True, which drops "
                "the gradients of the parameters inside when they are asked for by name; pass "
                "use_reentrant=False"
            )
        waiting += [parent for parent, _ in node.next_functions]
