"""What a model may say about a batch."""

from __future__ import annotations

import math

import pytest
import torch

from reweight import Losses


def test_a_batch_may_be_empty_and_fixed_a_number() -> None:
    losses = Losses(torch.zeros(0), fixed=0.5)
    losses.check_finite()
    assert losses.weighted.shape == (0,)


def test_a_reduced_loss_is_refused() -> None:
    with pytest.raises(ValueError, match=r'reduction="none"'):
        Losses(torch.tensor(1.0))


def test_a_loss_per_element_is_refused_with_its_shape() -> None:
    with pytest.raises(ValueError, match=r"\(4, 3\).*\[B\]"):
        Losses(torch.ones(4, 3))


def test_losses_of_another_type_are_refused() -> None:
    with pytest.raises(TypeError, match=r"losses\.weighted.*int64"):
        Losses(torch.ones(3, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"\blist\b"):
        Losses([1.0, 2.0])  # type: ignore[arg-type]


def test_a_fixed_part_that_is_not_reduced_is_refused() -> None:
    with pytest.raises(ValueError, match=r"losses\.fixed.*\(3,\)"):
        Losses(torch.ones(3), fixed=torch.ones(3))
    assert Losses(torch.ones(3), fixed=torch.ones(1, 1)).fixed is not None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_losses_that_are_not_finite_are_told_by_sample(bad: float) -> None:
    losses = Losses(torch.tensor([1.0, bad, 2.0, bad]))
    with pytest.raises(ValueError, match=rf"\b{bad}\b.*\b1, 3\b.*\b4\b"):
        losses.check_finite()


def test_many_bad_losses_are_counted_and_not_listed() -> None:
    losses = Losses(torch.full((100,), math.nan))
    with pytest.raises(ValueError, match=r"\b95 more.*\b100\b"):
        losses.check_finite()


def test_a_fixed_part_that_is_not_finite_is_told() -> None:
    for fixed in (math.nan, torch.tensor(math.inf)):
        with pytest.raises(ValueError, match=r"losses\.fixed.*\b(nan|inf)\b"):
            Losses(torch.ones(2), fixed=fixed).check_finite()


# -- losses as a function of outputs ---------------------------------------------------------------


def test_losses_of_outputs_are_those_that_the_function_returns() -> None:
    out = torch.tensor([[1.0], [2.0]], requires_grad=True)
    losses = Losses.of({"out": out}, lambda o: o["out"].squeeze(1).square(), inputs=(1, 2))
    assert torch.equal(losses.weighted, torch.tensor([1.0, 4.0]))
    assert losses.fixed == 0.0 and losses.inputs == (1, 2)
    (grad,) = torch.autograd.grad(losses.weighted.sum(), out)
    assert torch.equal(grad, torch.tensor([[2.0], [4.0]]))


def test_fixed_parts_of_outputs_are_added() -> None:
    out = torch.ones(2)
    losses = Losses.of(out, lambda o: Losses(o, fixed=o.sum(), inputs=o), fixed=0.5)
    assert float(losses.fixed) == 2.5 and torch.equal(losses.inputs, out)


def test_outputs_keep_their_structure_and_their_graph() -> None:
    leaf = torch.ones(2, requires_grad=True)
    losses = Losses.of([2.0 * leaf, None, torch.arange(2)], lambda o: o[0])
    seen, nothing, ids = losses.outputs
    assert nothing is None and torch.equal(ids, torch.arange(2))
    # The losses depend on the very tensors that are kept.
    (grad,) = torch.autograd.grad(losses.weighted.sum(), seen)
    assert torch.equal(grad, torch.ones(2))


@pytest.mark.parametrize("outputs", [None, (), torch.arange(3), "logits"])
def test_outputs_without_a_tensor_to_differentiate_are_refused(outputs: object) -> None:
    with pytest.raises(TypeError, match=r"outputs.*Losses\.of"):
        Losses.of(outputs, lambda o: torch.ones(3))


def test_a_function_that_returns_no_losses_is_refused() -> None:
    with pytest.raises(TypeError, match="float"):
        Losses.of(torch.ones(2), lambda o: 1.0)  # type: ignore[arg-type, return-value]
    with pytest.raises(ValueError, match=r'reduction="none"'):
        Losses.of(torch.ones(2), lambda o: o.mean())


def test_inputs_that_are_given_twice_are_refused() -> None:
    with pytest.raises(ValueError, match="inputs are given twice"):
        Losses.of(torch.ones(2), lambda o: Losses(o, inputs=1), inputs=2)
