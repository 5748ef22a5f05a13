"""CoNet against its formula written out, and what its variants leave out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cdr.data import CrossDomainData
from cdr.data.batches import Batches, PairBatch
from cdr.models.conet import CoNet, CoNetOptions

OPTIONS = CoNetOptions(dim=4, hidden=(8, 6, 5), cross_layers=2, init_std=1.0)


def batch_of(data: CrossDomainData, history: int = 0) -> PairBatch:
    return Batches(data, history, seed=0).train_pairs(torch.arange(len(data.train)))


def conet(data: CrossDomainData, options: CoNetOptions = OPTIONS, **more: bool) -> CoNet:
    torch.manual_seed(0)
    return CoNet(data, options, **more).double()


def by_hand(p: dict[str, Tensor], batch: PairBatch, cross_layers: int) -> tuple[Tensor, Tensor]:
    def inputs(domain: str) -> Tensor:
        candidates = getattr(batch, domain)
        item = p[f"{domain}_items.item.weight"][candidates.item]
        category = p[f"{domain}_items.category.weight"][candidates.category]
        return torch.hstack([p["user.weight"][batch.user], item, category])

    t, s = inputs("target"), inputs("source")
    for depth in range(3):
        w_t, w_s = p[f"target_tower.{depth}.weight"], p[f"source_tower.{depth}.weight"]
        b_t, b_s = p[f"target_tower.{depth}.bias"], p[f"source_tower.{depth}.bias"]
        next_t, next_s = t @ w_t.T + b_t, s @ w_s.T + b_s
        if depth < cross_layers:
            h = p[f"cross.{depth}.weight"]
            next_t, next_s = next_t + s @ h.T, next_s + t @ h.T  # the same H both ways
        t, s = next_t.clamp(min=0), next_s.clamp(min=0)
    return (
        t @ p["target_head.weight"][0] + p["target_head.bias"],
        s @ p["source_head.weight"][0] + p["source_head.bias"],
    )


@pytest.mark.parametrize("cross_layers", [0, 1, 2, 3])
def test_forward_is_the_formula(tiny: CrossDomainData, cross_layers: int) -> None:
    model = conet(tiny, replace(OPTIONS, cross_layers=cross_layers))
    assert len(model.cross) == cross_layers
    expected = by_hand(dict(model.state_dict()), batch_of(tiny), cross_layers)
    for found, wanted in zip(model(batch_of(tiny)), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_losses_are_binary_cross_entropies(tiny: CrossDomainData) -> None:
    model, batch = conet(tiny), batch_of(tiny)
    batch = replace(
        batch,
        target_label=batch.target_label.double(),
        source_label=batch.source_label.double(),
    )
    target, source = by_hand(dict(model.state_dict()), batch, 2)
    losses = model.losses(batch)

    def entropy(logits: Tensor, label: Tensor) -> Tensor:
        p = logits.sigmoid()
        return -(label * p.log() + (1 - label) * (1 - p).log())

    torch.testing.assert_close(losses.fixed, entropy(target, batch.target_label).mean())
    torch.testing.assert_close(losses.weighted, entropy(source, batch.source_label))
    torch.testing.assert_close(model.outer_loss(batch), losses.fixed)


def test_the_tower_without_biases_has_none(tiny: CrossDomainData) -> None:
    names = [name for name, _ in conet(tiny, replace(OPTIONS, bias=False)).named_parameters()]
    assert names and not [name for name in names if name.endswith("bias")]


def test_pads_have_no_loss_and_no_gradient(gappy: CrossDomainData) -> None:
    model, batch = conet(gappy), batch_of(gappy)
    losses = model.losses(batch).weighted
    assert (losses[~batch.has_source] == 0).all() and (losses[batch.has_source] > 0).all()
    losses[~batch.has_source].sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_the_single_domain_model_has_no_source_parameters(tiny: CrossDomainData) -> None:
    model = conet(tiny, single_domain=True)
    names = {name for name, _ in model.named_parameters()}
    assert names == {
        "user.weight",
        "target_items.item.weight",
        "target_items.category.weight",
        *(f"target_tower.{i}.{kind}" for i in range(3) for kind in ("weight", "bias")),
        "target_head.weight",
        "target_head.bias",
    }
    target, source = model(batch_of(tiny))
    assert source is None and target.shape == (len(tiny.train),)
    assert not model.losses(batch_of(tiny)).weighted.any()


def test_the_single_domain_model_does_not_see_the_source(tiny: CrossDomainData) -> None:
    model, rows = conet(tiny, single_domain=True), torch.arange(len(tiny.train))
    one, other = (Batches(tiny, 0, seed).train_pairs(rows) for seed in (0, 1))
    assert not torch.equal(one.source.item, other.source.item)
    assert torch.equal(model(one)[0], model(other)[0])


def test_without_a_source_loss_the_source_head_is_left_alone(tiny: CrossDomainData) -> None:
    model = conet(tiny)
    model.losses(batch_of(tiny)).fixed.backward()
    assert model.source_head.weight.grad is None and model.source_head.bias.grad is None
    # Source features still reach the target through the exchange.
    assert model.source_items.item.weight.grad.any()
    assert model.cross[0].weight.grad.any()


def test_the_dev_head_reads_the_target_tower(tiny: CrossDomainData) -> None:
    model, batch = conet(tiny, replace(OPTIONS, dev_head=True)), batch_of(tiny)
    assert not torch.isclose(model.outer_loss(batch), model.losses(batch).fixed)
    model.dev_head.load_state_dict(model.target_head.state_dict())
    torch.testing.assert_close(model.outer_loss(batch), model.losses(batch).fixed)


def test_the_weighter_sees_item_and_history_embeddings(tiny: CrossDomainData) -> None:
    model, batch = conet(tiny), batch_of(tiny, history=5)
    inputs = model.losses(batch).inputs
    expected = torch.hstack(
        [
            model.source_items.item.weight[batch.source.item],
            model.source_items.category.weight[batch.source.category],
        ]
    )
    assert torch.equal(inputs.item, expected)
    assert inputs.source_history.shape == inputs.target_history.shape == (len(batch), 5, 8)
    assert torch.equal(inputs.source_mask, batch.source_history.mask)
    assert torch.equal(inputs.target_mask, batch.target_history.mask)
    assert not any(part.requires_grad for part in inputs)
    assert model.losses(batch_of(tiny)).inputs is None


def test_a_seed_gives_the_initial_parameters(tiny: CrossDomainData) -> None:
    one, other = conet(tiny).state_dict(), conet(tiny).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    # Some 800 entries: the standard error of their standard deviation is 2.5 %.
    assert one["source_items.item.weight"].std() == pytest.approx(1.0, abs=0.1)
