"""What an older torch lacks is said, or found in another way; here the newer one plays it."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from _support.compiling import assert_same, batches, mean_error, network, squares, weighter
from reweight import ImplicitHypergradient, Neumann, Reweighted, wrap

pytestmark = pytest.mark.filterwarnings("error")


def wrapped(model: nn.Module, **how: Any) -> Reweighted:
    strategy = ImplicitHypergradient(Neumann(3, 0.05), **how)
    return wrap(model, weighter(), losses=squares, outer_loss=mean_error, hypergradient=strategy)


@pytest.mark.parametrize("version", ["2.4.0", "2.6.0+cu124"])
def test_compiling_without_a_torch_that_can_is_eager_and_says_which_one_can(
    version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    batch, dev_batch = batches(6, 0)
    compiling, eager = wrapped(network(), compile=True), wrapped(network())
    with pytest.warns(UserWarning, match=rf"eagerly.*torch 2\.7 or newer.*{re.escape(version)}"):
        found = compiling.hypergradient(batch, dev_batch)
    assert_same(found, eager.hypergradient(batch, dev_batch))
    compiling.hypergradient(batch, dev_batch)  # said once: a second warning is an error here


class Rounded(nn.Module):
    """Gives float64, and computes a part of it in another type."""

    def __init__(self, to: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self.to_ = nn.Linear(3, 4).double(), nn.Linear(4, 1).double(), to

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.body(x)).to(self.to_).double()
        return self.head(hidden)  # type: ignore[no-any-return]


@pytest.mark.parametrize("to", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_named_where_the_graph_does_not_show_types(
    to: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reweight._tables.graph.shows_types", lambda node: False)
    with pytest.warns(UserWarning, match=f"computed in {to}"):
        info = wrapped(Rounded(to)).hypergradient(*batches(6, 0)).info
    assert not info.trustworthy


def test_full_precision_gives_no_warning_where_the_graph_does_not_show_types(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("reweight._tables.graph.shows_types", lambda node: False)
    wrapped(Rounded(torch.float64)).hypergradient(*batches(6, 0))


def test_a_pass_that_writes_is_undone_where_torch_sets_one_version_counter_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Moving(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.body = nn.Linear(3, 1).double()
            self.scale = nn.Parameter(torch.ones(1).double(), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                self.scale.mul_(0.5)
            return self.body(x)  # type: ignore[no-any-return]

    set_now = torch._C._autograd._unsafe_set_version_counter
    versions = []

    def set_one(x: Tensor, version: int) -> None:
        if not isinstance(x, Tensor):
            raise TypeError("incompatible function arguments")
        versions.append(version)
        try:
            set_now((x,), (version,))
        except TypeError:  # this torch is an older one
            set_now(x, version)  # type: ignore[arg-type]

    expected = wrapped(Moving()).hypergradient(*batches(6, 0))
    monkeypatch.setattr(torch._C._autograd, "_unsafe_set_version_counter", set_one)
    model = Moving()
    found = wrapped(model).hypergradient(*batches(6, 0))
    assert_same(found, expected)
    assert versions and model.scale.item() == 1.0
