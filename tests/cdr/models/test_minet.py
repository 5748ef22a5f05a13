"""MiNet against its formulas written out row by row, and what pads and variants leave out."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scenarios import arrays, batch_for, entries, entropy, with_other_pads

from cdr.data import CrossDomainData
from cdr.data.batches import PairBatch
from cdr.models.minet import MiNet, MiNetOptions

OPTIONS = MiNetOptions(
    dim=3, init_std=1.0, target_window=3, source_window=5, attention=4, rank=2, hidden=(5, 4)
)


def minet(data: CrossDomainData, options: MiNetOptions = OPTIONS, **more: bool) -> MiNet:
    torch.manual_seed(0)
    return MiNet(data, options, **more).double()


def relu(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, 0.0)


def embedding(p: dict[str, np.ndarray], domain: str, item: int, category: int) -> np.ndarray:
    tables = p[f"{domain}_items.item.weight"], p[f"{domain}_items.category.weight"]
    return np.concatenate([tables[0][item], tables[1][category]])


def network(p: dict[str, np.ndarray], domain: str, x: np.ndarray) -> float:
    for layer in (0, 2):
        name = f"{domain}_network.{layer}"
        x = relu(p[f"{name}.weight"] @ x + p[f"{name}.bias"])
    return float((p[f"{domain}_head.weight"] @ x + p[f"{domain}_head.bias"])[0])


def interest(
    p: dict[str, np.ndarray],
    domain: str,
    liked: list[tuple[int, int]],
    candidate: np.ndarray,
    user: np.ndarray,
) -> np.ndarray:
    """Σ softmax(v' ReLU(V [h ; c ; u ; M h ∘ c])) h, zero where nothing was liked."""
    name = f"{domain}_attention"
    rest = p[f"{name}.of_rest.weight"]
    width = len(candidate)
    v_all = np.concatenate(
        [p[f"{name}.of_history.weight"], rest[:, :width], rest[:, width:]]
        + [p[f"{name}.of_product.weight"]],
        axis=1,
    )
    transfer = np.eye(width)
    if domain == "source":
        transfer = p[f"{name}.transfer.1.weight"] @ p[f"{name}.transfer.0.weight"]
        assert np.linalg.matrix_rank(transfer) == OPTIONS.rank
    importance, items = [], []
    for item, category in liked:
        h = embedding(p, domain, item, category)
        x = np.concatenate([h, candidate, user, (transfer @ h) * candidate])
        importance.append(math.exp(float((p[f"{name}.score.weight"] @ relu(v_all @ x))[0])))
        items.append(h)
    total = sum(importance)
    return sum((a / total * h for a, h in zip(importance, items, strict=True)), np.zeros(width))


def by_hand(
    p: dict[str, np.ndarray], batch: PairBatch, row: int, domains: tuple[str, ...]
) -> tuple[float, float | None]:
    """The logits of one row."""
    user = p["user.weight"][int(batch.user[row])]
    candidate = embedding(p, "target", int(batch.target.item[row]), int(batch.target.category[row]))
    interests = [user]
    for domain in domains:
        liked = entries(getattr(batch.target_past, domain), row)
        interests.append(interest(p, domain, liked, candidate, user))
    z = np.concatenate([candidate, *interests])
    gated = []
    for place, part in enumerate(interests):
        name = f"gates.{place}"
        hidden = relu(p[f"{name}.0.weight"] @ z)
        gate = math.exp(float((p[f"{name}.2.weight"] @ hidden + p[f"{name}.2.bias"])[0]))
        gated.append(gate * part)
    target = network(p, "target", np.concatenate([candidate, *gated]))
    if "source" not in domains:
        return target, None
    source = embedding(p, "source", int(batch.source.item[row]), int(batch.source.category[row]))
    of_user = p["user.weight"][int(batch.source_user[row])]
    return target, network(p, "source", np.concatenate([source, of_user]))


@pytest.mark.parametrize("name", ["tiny", "gappy"])
def test_forward_is_the_formula(name: str, request: pytest.FixtureRequest) -> None:
    data = request.getfixturevalue(name)
    model = minet(data)
    batch, p = batch_for(model, data), arrays(model)
    target, source = model(batch)
    sizes = batch.target_past.source.mask.sum(1), batch.target_past.target.mask.sum(1)
    assert {0, 5} <= set(sizes[0].tolist()) and {0, 3} <= set(sizes[1].tolist())
    for row in range(0, len(batch), 3):
        wanted = by_hand(p, batch, row, ("target", "source"))
        assert target[row].item() == pytest.approx(wanted[0], rel=1e-10, abs=1e-12)
        assert source[row].item() == pytest.approx(wanted[1], rel=1e-10, abs=1e-12)
    torch.testing.assert_close(model.target_logits(batch), target)


def test_forward_of_a_single_domain_is_the_formula(tiny: CrossDomainData) -> None:
    model = minet(tiny, single_domain=True)
    batch, p = batch_for(model, tiny), arrays(model)
    assert batch.target_past.source is None and batch.source_past is None
    target, source = model(batch)
    assert source is None and len(model.gates) == 2
    for row in range(0, len(batch), 11):
        wanted, _ = by_hand(p, batch, row, ("target",))
        assert target[row].item() == pytest.approx(wanted, rel=1e-10, abs=1e-12)


def test_gates_begin_by_the_user(tiny: CrossDomainData) -> None:
    model = minet(tiny)
    assert [gate[-1].bias.item() for gate in model.gates] == [1.0, 0.0, 0.0]
    seen = []
    model.target_network.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    batch = batch_for(model, tiny)
    with torch.no_grad():
        for gate in model.gates:
            gate[-1].weight.zero_()
        model.target_features(batch)
        for gate in model.gates:
            gate[-1].bias.zero_()
        model.target_features(batch)
    begin, ungated = (x.split([6, 3, 6, 6], dim=1) for x in seen)
    for place, factor in enumerate((1.0, math.e, 1.0, 1.0)):  # [c ; g u ; g p_t ; g p_s]
        torch.testing.assert_close(begin[place], factor * ungated[place])
    assert torch.equal(ungated[1], model.user.weight[batch.user])


def test_pads_are_not_read(gappy: CrossDomainData) -> None:
    model = minet(gappy)
    batch = batch_for(model, gappy)
    past = batch.target_past
    changed = with_other_pads(past, gappy)
    assert not torch.equal(past.source.items.item, changed.source.items.item)
    assert not torch.equal(past.target.items.item, changed.target.items.item)
    gradients = []
    for each in (past, changed):
        loss = model.losses(replace(batch, target_past=each)).fixed
        gradients.append(torch.autograd.grad(loss, list(model.target_items.parameters())))
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(model(batch)[0], model(replace(batch, target_past=changed))[0])


def test_an_empty_history_is_zero_and_has_a_gradient(gappy: CrossDomainData) -> None:
    model = minet(gappy)
    batch = batch_for(model, gappy)
    past = batch.target_past
    empty = type(past)(
        *(replace(h, mask=torch.zeros_like(h.mask)) for h in (past.source, past.target))
    )
    seen = []
    model.target_network.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    losses = model.losses(replace(batch, target_past=empty))
    assert not seen[0][:, 9:].any()  # p_t and p_s, behind candidate and user
    (losses.fixed + losses.weighted.mean()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    assert not model.source_attention.score.weight.grad.any()
    assert model.user.weight.grad.any()


def test_losses_are_binary_cross_entropies(gappy: CrossDomainData) -> None:
    model = minet(gappy)
    batch, p = batch_for(model, gappy), arrays(model)
    logits = [by_hand(p, batch, row, ("target", "source")) for row in range(len(batch))]
    target, source = (np.array(column) for column in zip(*logits, strict=True))
    losses = model.losses(batch)
    fixed = entropy(target, batch.target_label).mean()
    assert float(losses.fixed) == pytest.approx(fixed, rel=1e-10)
    weighted = entropy(source, batch.source_label) * batch.has_source.numpy()
    np.testing.assert_allclose(losses.weighted.detach().numpy(), weighted, rtol=1e-10)
    assert float(model.outer_loss(batch)) == pytest.approx(fixed, rel=1e-10)


def test_without_a_source_loss_the_source_is_read_and_its_network_left_alone(
    tiny: CrossDomainData,
) -> None:
    model = minet(tiny)
    model.losses(batch_for(model, tiny)).fixed.backward()
    assert model.source_items.item.weight.grad.any()
    assert all(w.grad.any() for w in model.source_attention.transfer.parameters())
    for module in (model.source_network, model.source_head):
        assert all(parameter.grad is None for parameter in module.parameters())


def test_the_source_network_reads_the_user_of_the_source_behaviour(tiny: CrossDomainData) -> None:
    model = minet(tiny)
    batch = batch_for(model, tiny)
    others = replace(batch, source_user=(batch.source_user + 1) % tiny.num_users)
    (target, source), (same, moved) = model(batch), model(others)
    assert torch.equal(target, same) and not torch.equal(source, moved)
    for row in range(0, len(batch), 11):
        _, wanted = by_hand(arrays(model), others, row, ("target", "source"))
        assert moved[row].item() == pytest.approx(wanted, rel=1e-10, abs=1e-12)


def test_a_batch_without_the_histories_is_told_how_to_be_made(tiny: CrossDomainData) -> None:
    model = minet(tiny)
    batch = batch_for(model, tiny)
    with pytest.raises(ValueError, match="windows="):
        model(replace(batch, target_past=replace(batch.target_past, source=None)))
    with pytest.raises(ValueError, match="windows="):
        model(replace(batch, target_past=None))


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"target_window": 0}, "--model.target-window 0"),
        ({"source_window": 0}, "--model.source-window 0"),
        ({"attention": 0}, "--model.attention 0"),
        ({"rank": 0}, "--model.rank 0"),
        ({"hidden": (4, 0)}, "--model.hidden 4 0"),
    ],
)
def test_options_out_of_range_name_their_flag(options: dict[str, object], flag: str) -> None:
    with pytest.raises(ValueError, match=flag):
        MiNetOptions(**options)
