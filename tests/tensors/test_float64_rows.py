"""Of a large tensor, what is read is computed in float64, not the tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from reweight._tensors import InFloat64

TABLE, ROWS = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([4, 1])


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the size of the largest result."""

    size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.size = max(self.size, result.numel())
        return result


@pytest.mark.parametrize(
    "read",
    [
        lambda: TABLE[ROWS],
        lambda: TABLE.index_select(0, ROWS),
        lambda: functional.embedding(ROWS, TABLE),
        lambda: TABLE.gather(0, ROWS.unsqueeze(1).expand(2, 3)),
    ],
    ids=["index", "index_select", "embedding", "gather"],
)
def test_of_a_table_only_the_rows_that_are_read_are_widened(read: Callable[[], Tensor]) -> None:
    with Largest() as largest, InFloat64():
        found = read()
    assert found.dtype == torch.float64
    assert torch.equal(found, TABLE.double()[ROWS])
    assert largest.size == found.numel()
