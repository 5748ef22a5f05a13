"""DASL against its formulas written out row by row, and the faults of its released code, mended."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scenarios import arrays, batch_for, entries, entropy, part, with_other_pads
from torch import Tensor, nn

from cdr.data import CrossDomainData, Interactions, build
from cdr.data.batches import Batches, PairBatch
from cdr.models.dasl import DASL, DASLOptions, _Reader
from cdr.training.evaluation import score
from cdr.training.learner import Learner
from cdr.training.options import Options, OuterOptions, PerceptronOptions

OPTIONS = DASLOptions(dim=3, init_std=1.0, window=4, state=5, hidden=(4, 3))


def dasl(data: CrossDomainData, options: DASLOptions = OPTIONS, **more: bool) -> DASL:
    """A model some way into its training, whose every part tells."""
    torch.manual_seed(0)
    model = DASL(data, options, **more).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var") or "norm.weight" in name:
                tensor.uniform_(0.5, 2.0, generator=generator)
            elif tensor.is_floating_point() and ("norm" in name or "_bias." in name):
                tensor.normal_(generator=generator)
            elif name == "to_target":
                tensor.add_(torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype))
    return model


# The formulas, a row at a time.


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def states(p: dict[str, np.ndarray], domain: str, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """z, r = σ(W x + U h); h ← z ∘ h + (1 − z) ∘ tanh(W x + r ∘ U h)."""
    name = f"{domain}_reader"
    w = np.concatenate([p[f"{name}.of_item.weight"], p[f"{name}.of_user.weight"]], axis=1)
    b = p[f"{name}.of_item.bias"]
    u, c = p[f"{name}.of_state.weight"], p[f"{name}.of_state.bias"]
    h, found = np.zeros(u.shape[1]), []
    for x in inputs:
        (wz, wr, wn), (uz, ur, un) = np.split(w @ x + b, 3), np.split(u @ h + c, 3)
        z, r = sigmoid(wz + uz), sigmoid(wr + ur)
        h = z * h + (1 - z) * np.tanh(wn + r * un)
        found.append(h)
    return found


def embedding(p: dict[str, np.ndarray], domain: str, item: int, category: int) -> np.ndarray:
    tables = p[f"{domain}_items.item.weight"], p[f"{domain}_items.category.weight"]
    return np.concatenate([tables[0][item], tables[1][category]])


def logit(p: dict[str, np.ndarray], batch: PairBatch, row: int, domain: str, single: bool) -> float:
    """The logit of one row in one domain, which reads both histories."""
    own = int((batch.user if domain == "target" else batch.source_user)[row])
    candidate = getattr(batch, domain)
    item, past = int(candidate.item[row]), getattr(batch, f"{domain}_past")
    users = {"target": p["user.weight"][own]}
    if not single:
        users["source"] = p["source_user.weight"][own]
    user = users[domain]
    if domain == "target" and not single:
        users["source"] = users["source"] @ p["to_target"]
    if domain == "source":
        users["target"] = users["target"] @ p["to_target"].T
    name, seen = f"{domain}_reader", []
    for of in users:
        liked = entries(getattr(past, of), row)
        seen += states(
            p, domain, [np.concatenate([embedding(p, of, *h), users[of]]) for h in liked]
        )
    importance = [
        np.exp(
            float(
                p[f"{name}.score.weight"][0]
                @ np.tanh(p[f"{name}.attention.weight"] @ h + p[f"{name}.attention.bias"])
            )
        )
        for h in seen
    ]
    preference = sum(
        (a / sum(importance) * h for a, h in zip(importance, seen, strict=True)),
        np.zeros(OPTIONS.state),
    )
    net = f"{domain}_network"
    x = np.concatenate([preference, embedding(p, domain, item, int(candidate.category[row])), user])
    spread = np.sqrt(p[f"{net}.norm.running_var"] + 1e-5)
    x = (x - p[f"{net}.norm.running_mean"]) / spread * p[f"{net}.norm.weight"]
    x = x + p[f"{net}.norm.bias"]
    for layer in range(2):
        x = sigmoid(p[f"{net}.layers.{layer}.weight"] @ x + p[f"{net}.layers.{layer}.bias"])
    bias = p[f"{domain}_bias.user.weight"][own] + p[f"{domain}_bias.item.weight"][item]
    x = np.concatenate([x, bias])
    return float((p[f"{domain}_head.weight"] @ x + p[f"{domain}_head.bias"])[0])


@pytest.mark.parametrize("single_domain", [False, True])
@pytest.mark.parametrize("name", ["tiny", "gappy"])
def test_forward_is_the_formula(
    name: str, single_domain: bool, request: pytest.FixtureRequest
) -> None:
    data = request.getfixturevalue(name)
    model = dasl(data, single_domain=single_domain).eval()
    batch, p = batch_for(model, data), arrays(model)
    target, source = model(batch)
    assert {0, OPTIONS.window} <= set(batch.target_past.target.mask.sum(1).tolist())
    for row in range(0, len(batch), 5):
        wanted = logit(p, batch, row, "target", single_domain)
        assert target[row].item() == pytest.approx(wanted, rel=1e-10, abs=1e-12)
        if source is not None and batch.has_source[row]:
            wanted = logit(p, batch, row, "source", single_domain)
            assert source[row].item() == pytest.approx(wanted, rel=1e-10, abs=1e-12)
    assert (source is None) == single_domain


def test_the_reader_is_a_gru() -> None:
    torch.manual_seed(0)
    reader, gru = _Reader(OPTIONS).double(), nn.GRU(9, 5).double()

    def reordered(tensor: Tensor) -> Tensor:
        update, reset, new = tensor.chunk(3)
        return torch.cat([reset, update, new])  # torch has the reset gate first

    with torch.no_grad():
        of_input = torch.cat([reader.of_item.weight, reader.of_user.weight], 1)
        gru.weight_ih_l0.copy_(reordered(of_input))
        gru.bias_ih_l0.copy_(reordered(reader.of_item.bias))
        gru.weight_hh_l0.copy_(reordered(reader.of_state.weight))
        gru.bias_hh_l0.copy_(reordered(reader.of_state.bias))
    items, user = (torch.randn(n, 7, d, dtype=torch.float64) for n, d in ((6, 6), (1, 3)))
    inputs = reader.of_item(items) + reader.of_user(user)
    found = reader._states(inputs, torch.ones(6, 7, dtype=torch.bool))
    torch.testing.assert_close(found, gru(torch.cat([items, user.expand(6, 7, 3)], -1))[0])


def test_a_masked_entry_is_as_if_it_were_not_there() -> None:
    torch.manual_seed(0)
    reader, x = _Reader(OPTIONS).double(), torch.randn(4, 1, 15, dtype=torch.float64)
    with_gap = reader._states(x, torch.tensor([[True], [False], [True], [True]]))
    without = reader._states(x[[0, 2, 3]], torch.ones(3, 1, dtype=torch.bool))
    torch.testing.assert_close(with_gap[[0, 2, 3]], without)


def test_pads_are_not_read(gappy: CrossDomainData) -> None:
    model = dasl(gappy).eval()
    batch = batch_for(model, gappy)
    changed = replace(
        batch,
        target_past=with_other_pads(batch.target_past, gappy),
        source_past=with_other_pads(batch.source_past, gappy),
    )
    one, other = (b.source_past.target.items.item for b in (batch, changed))
    assert not torch.equal(one, other)
    gradients = []
    for each in (batch, changed):
        loss = model(each)[0].sum() + model(each)[1].sum()
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    assert all(map(torch.equal, *gradients))
    assert all(map(torch.equal, model(batch), model(changed)))


def test_empty_histories_have_a_gradient(gappy: CrossDomainData) -> None:
    model = dasl(gappy)
    batch = batch_for(model, gappy)

    def emptied(past: object) -> object:
        return type(past)(
            *(replace(h, mask=torch.zeros_like(h.mask)) for h in (past.source, past.target))
        )

    empty = replace(
        batch, target_past=emptied(batch.target_past), source_past=emptied(batch.source_past)
    )
    seen = []
    model.target_network.norm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    losses = model.losses(empty)
    assert not seen[0][:, : OPTIONS.state].any()
    (losses.fixed + losses.weighted.mean()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
    assert not model.target_reader.of_item.weight.grad.any()


def test_losses_are_binary_cross_entropies_and_orthogonality(gappy: CrossDomainData) -> None:
    model = dasl(gappy).eval()
    batch, p = batch_for(model, gappy), arrays(model)
    rows = range(len(batch))
    target = np.array([logit(p, batch, row, "target", False) for row in rows])
    m = p["to_target"]
    cosines = []
    for user in batch.user.tolist():
        a, b = p["source_user.weight"][user] @ m, p["user.weight"][user]
        cosines.append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    skew = ((m.T @ m - np.eye(3)) ** 2).sum()
    losses, plain = model.losses(batch), entropy(target, batch.target_label).mean()
    penalty = OPTIONS.orthogonality * (1 - np.mean(cosines) + skew)
    assert penalty > 0.01
    assert losses.fixed.item() == pytest.approx(plain + penalty, rel=1e-10)
    assert model.outer_loss(batch).item() == pytest.approx(plain, rel=1e-10)
    _, source = model(batch)
    weighted = entropy(source.detach().numpy(), batch.source_label) * batch.has_source.numpy()
    np.testing.assert_allclose(losses.weighted.detach().numpy(), weighted, rtol=1e-10)
    free = dasl(gappy, replace(OPTIONS, orthogonality=0.0)).eval()
    assert free.losses(batch).fixed.item() == pytest.approx(plain, rel=1e-10)


def test_the_penalty_pulls_the_map_towards_orthogonal(tiny: CrossDomainData) -> None:
    model = dasl(tiny)
    batch = batch_for(model, tiny)

    def skew() -> float:
        m = model.to_target.detach()
        return float((m.T @ m - torch.eye(3)).norm())

    before, optimizer = skew(), torch.optim.SGD([model.to_target], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        model.penalty(batch).backward()
        optimizer.step()
    assert before > 1.0 > 0.3 > skew()
    assert model.penalty(batch) < model.options.orthogonality


# What the released code does otherwise.


def test_dropout_is_off_when_scores_are_made(tiny: CrossDomainData) -> None:
    model = dasl(tiny, replace(OPTIONS, dropout=0.5))
    batch = batch_for(model, tiny)
    windows = model.windows(model.options, False)
    one, other = (score(model, Batches(tiny, 0, 0, windows), tiny.test, 1) for _ in range(2))
    assert np.array_equal(one.probability, other.probability)
    with torch.no_grad():
        assert torch.equal(model.eval()(batch)[0], dasl(tiny).eval()(batch)[0])
        model.train()
        assert not torch.isclose(model(batch)[0], model(batch)[0]).any()


def test_a_score_does_not_depend_on_the_other_rows(tiny: CrossDomainData) -> None:
    model = dasl(tiny)
    batch = batch_for(model, tiny)
    few = torch.arange(0, len(batch), 10)
    with torch.no_grad():
        # In training, the statistics are those of the batch.
        assert not torch.isclose(model(batch)[0][few], model(part(batch, few))[0]).any()
        model.eval()
        torch.testing.assert_close(model(batch)[0][few], model(part(batch, few))[0])


@pytest.mark.parametrize("dev_head", [False, True])
def test_an_outer_step_leaves_the_statistics_alone(tiny: CrossDomainData, dev_head: bool) -> None:
    torch.manual_seed(0)
    told = Options(
        model=replace(OPTIONS, dev_head=dev_head, dropout=0.2),
        outer=OuterOptions(batch_size=32, dev_head_steps=3, dev_head_batch_size=16),
        perceptron=PerceptronOptions(history=4),
    )
    model = DASL(tiny, told.model)
    learner = Learner(model, torch.optim.Adam(model.parameters()), tiny, told, seed=0)
    batches = Batches(tiny, 4, 0, model.windows(told.model, False))
    learner.loss(batches.train_pairs(torch.arange(32)))  # away from 0 and 1
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert len(before) == 6 and before["target_network.norm.running_mean"].any()
    learner.outer_step(batches)
    learner.weights(batches)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]), name
    learner.loss(batches.train_pairs(torch.arange(32)))
    assert not torch.equal(
        model.target_network.norm.running_mean, before["target_network.norm.running_mean"]
    )


def test_no_history_holds_its_candidate() -> None:
    # Each user likes the same few items again and again.
    rng = np.random.default_rng(0)

    def log(later: float) -> Interactions:
        user = np.repeat(np.arange(20), 12)
        label = rng.random(240) < 0.8
        return Interactions(user, rng.integers(0, 4, 240), label, rng.random(240) + later)

    data = build("again", log(0.0), log(2.0))
    model = dasl(data)
    windows = model.windows(model.options, False)
    batches = Batches(data, 0, 0, windows)
    everything = batches.train_pairs(torch.arange(len(data.train)))
    tests = batches.pairs(data.test, torch.full((len(data.test),), 0.9))
    # As far back as a window goes, the users had met the candidate before.
    spans = (data.test.target_past[:, 1] - OPTIONS.window).clamp(min=0), data.test.target_past[:, 1]
    again = [
        int(item) in data.target_history.items[a:b].tolist()
        for item, a, b in zip(data.test.item, *spans, strict=True)
    ]
    assert any(again)
    for batch in (everything, tests):
        for domain in ("target", "source"):
            candidate = getattr(batch, domain).item.unsqueeze(1)
            history = getattr(getattr(batch, f"{domain}_past"), domain)
            assert history.mask.any() and not history.mask.all()
            assert not (history.mask & (history.items.item == candidate)).any()


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"window": 0}, "--model.window 0"),
        ({"state": 0}, "--model.state 0"),
        ({"hidden": (0,)}, "--model.hidden 0"),
        ({"dropout": 1.0}, "--model.dropout 1.0"),
        ({"dropout": -0.1}, "--model.dropout -0.1"),
        ({"orthogonality": -1.0}, "--model.orthogonality -1.0"),
    ],
)
def test_options_out_of_range_name_their_flag(options: dict[str, object], flag: str) -> None:
    with pytest.raises(ValueError, match=flag):
        DASLOptions(**options)


def test_what_is_left_of_an_epoch_may_be_a_single_row(gappy: CrossDomainData) -> None:
    model = dasl(gappy).train()
    one = part(batch_for(model, gappy), torch.tensor([3]))
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    in_training = model(one)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    # The statistics gathered so far stand in for those of the batch, as for scores.
    for got, expected in zip(in_training, model.eval()(one), strict=True):
        assert torch.equal(got, expected)
    losses = model.train().losses(one)
    (losses.fixed + losses.weighted.mean()).backward()
    norm = model.target_network.norm
    assert norm.weight.grad is not None and norm.weight.grad.abs().sum() > 0
