"""Micro-batches of several processes are the parts of one batch that their items make them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")
from reweight import Losses  # noqa: E402
from reweight.integrations.transformers.batches import dev_batches  # noqa: E402
from reweight.integrations.transformers.parts import Scaled, parts_of  # noqa: E402

PROCESSES, BATCHES = 3, 2


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def micro_batches() -> tuple[Tensor, list[list[Tensor]]]:
    """Counts ``[R, K, 2]`` and losses: sums over items, of numbers that differ."""
    torch.manual_seed(0)
    counts = torch.stack(
        [
            torch.randint(1, 30, (PROCESSES, BATCHES)),  # items
            torch.randint(1, 6, (PROCESSES, BATCHES)),  # losses
        ],
        dim=-1,
    )
    sums = [[torch.rand(int(n)) for n in row] for row in counts[..., 1]]
    return counts, sums


@pytest.mark.parametrize("by_all", [True, False])
def test_parts_make_up_the_loss_of_the_trainer(by_all: bool) -> None:
    counts, sums = micro_batches()
    items, numbers = counts.unbind(-1)
    if by_all:
        expected = sum(x.sum() for row in sums for x in row) / items.sum()
    else:  # the mean over the processes of what each would have alone
        alone = [sum(x.sum() for x in row) for row in sums]
        expected = (torch.stack(alone) / items.sum(1)).mean()

    parts = [parts_of(counts, rank, by_all) for rank in range(PROCESSES)]
    trained, joined = torch.zeros(()), torch.zeros(())
    for k in range(BATCHES):
        for rank in range(PROCESSES):
            n, part = len(sums[rank][k]), parts[rank][k]
            # As shipped losses are: their mean is the mean over the items.
            losses = Losses(sums[rank][k] * n / items[rank, k])
            scaled = Scaled({}, part.scale).of(losses).weighted
            trained += part.training * scaled.mean() / PROCESSES
            # An outer step of several processes divides by all their losses.
            joined += part.outer * scaled.sum() / numbers[:, k].sum()
    assert trained.item() == pytest.approx(expected.item(), rel=1e-12)
    assert joined.item() == pytest.approx(expected.item(), rel=1e-12)


def test_micro_batches_without_losses_or_items_add_nothing() -> None:
    (part,) = parts_of(torch.tensor([[[0, 0]], [[12, 3]]]), 0, by_all=True)
    assert (part.training, part.scale) == (0.0, 1.0)
    (part,) = parts_of(torch.tensor([[[0, 4]]]), 0, by_all=False)
    assert (part.training, part.outer, part.scale) == (0.0, 0.0, 1.0)


def test_scaled_losses_keep_their_fixed_part_and_outputs() -> None:
    outputs = torch.tensor([1.0, 2.0])
    losses = Losses.of(outputs, torch.square, fixed=torch.tensor(3.0), inputs=outputs)
    found = Scaled({}, 2.0).of(losses)
    assert found.weighted.tolist() == [2.0, 8.0] and found.fixed == 6.0
    assert found.inputs is losses.inputs and found.outputs is losses.outputs


def test_processes_have_the_parts_of_one_dev_batch() -> None:
    whole = dev_batches([*range(11)], list, batch_size=5, seed=3)
    parts = [dev_batches([*range(11)], list, 5, 3, rank, 2) for rank in range(2)]
    for _ in range(5):
        assert sorted(next(parts[0]) + next(parts[1])) == sorted(next(whole))
    assert parts[0].state_dict() == parts[1].state_dict()


def test_a_dev_set_with_less_than_a_sample_for_each_process_is_refused() -> None:
    with pytest.raises(ValueError, match="dev_dataset has 1 samples for 2 processes"):
        dev_batches([1], list, 4, 0, 0, 2)
