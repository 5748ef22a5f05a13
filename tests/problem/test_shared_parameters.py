"""Parameters with several names or places are differentiated in all of them, and put back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from _support.restless import batches, every_mode, make, untouched
from reweight._problem import parts_of, swapped


class Twice(nn.Module):
    """One submodule under two names, and one weight in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = self.first
        self.third = nn.Linear(3, 3)
        self.third.weight = self.first.weight
        self.out = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.third(torch.tanh(self.second(self.first(x))))))


class Plain(nn.Module):
    """The same function with each parameter in one place."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(3, 3))
        self.biases = nn.Parameter(torch.empty(2, 3))
        self.out = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        w, (a, b) = self.weight, self.biases
        for _ in range(2):
            x = x @ w.T + a
        return self.out(torch.tanh(torch.tanh(x) @ w.T + b))


@every_mode
def test_shared_parameters_are_differentiated_in_all_their_places(hvp: str) -> None:
    torch.manual_seed(0)
    twice, plain = Twice().double(), Plain().double()
    with torch.no_grad():
        plain.weight.copy_(twice.first.weight)
        plain.biases[0] = twice.first.bias
        plain.biases[1] = twice.third.bias
        plain.out.load_state_dict(twice.out.state_dict())
    train, dev = batches()
    rw = make(twice, hvp=hvp)
    with untouched(twice):
        found = rw.hypergradient(train, dev)
    assert twice.first is twice.second and twice.third.weight is twice.first.weight
    expected = make(plain, hvp="autograd").hypergradient(train, dev)
    atol = 1e-6 if hvp == "finite_difference" else 1e-13
    torch.testing.assert_close(found.influence, expected.influence, rtol=0.0, atol=atol)


def test_parameters_come_back_after_an_error_in_the_middle() -> None:
    net = Twice()
    replacement = {id(p): torch.zeros_like(p) for p in net.parameters()}
    with untouched(net), pytest.raises(KeyError), swapped(parts_of(net), replacement):
        assert not bool(net.second.weight.any())
        raise KeyError


class Recurrent(nn.Module):
    """Keeps its weights in a list beside the named ones."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.LSTM(1, 3, batch_first=True)
        self.out = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(x[..., None])[0][:, -1])


@every_mode
def test_a_recurrent_network_sees_the_swapped_weights_and_gets_its_own_back(hvp: str) -> None:
    torch.manual_seed(0)
    net = Recurrent().double()
    train, dev = batches()
    expected = make(net, hvp="autograd").hypergradient(train, dev)
    rw = make(net, hvp=hvp)
    with untouched(net):
        found = rw.hypergradient(train, dev)
    atol = 1e-6 if hvp == "finite_difference" else 1e-13
    torch.testing.assert_close(found.influence, expected.influence, rtol=0.0, atol=atol)
