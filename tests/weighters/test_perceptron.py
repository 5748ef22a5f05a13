"""The behavioral perceptron against BIAO's equations, written out plainly."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from reweight.weighters import BehavioralPerceptron, BehaviorInputs, HistorySlices, _attention
from reweight.weighters._attention import PooledAttention
from reweight.weighters._histories import Padded, Part

F64 = torch.float64
DIM, SOURCE, TARGET, BATCH = 6, 7, 4, 9


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def behaviors(dtype: torch.dtype = F64) -> BehaviorInputs:
    """Histories of all lengths; row 0 has neither, row 1 no source history."""
    source_mask = torch.rand(BATCH, SOURCE) < 0.6
    target_mask = torch.rand(BATCH, TARGET) < 0.6
    source_mask[:2] = False
    target_mask[0] = False
    source_mask[2:, 0] = True
    target_mask[1:, -1] = True
    return BehaviorInputs(
        item=torch.randn(BATCH, DIM, dtype=dtype),
        source_history=torch.randn(BATCH, SOURCE, DIM, dtype=dtype),
        target_history=torch.randn(BATCH, TARGET, DIM, dtype=dtype),
        source_mask=source_mask,
        target_mask=target_mask,
    )


def trained(**options: Any) -> BehavioralPerceptron:
    """A perceptron away from its start, in float64."""
    perceptron = BehavioralPerceptron(DIM, **options).double()
    with torch.no_grad():
        for parameter in perceptron.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return perceptron


def plain_attention(attention: PooledAttention) -> nn.MultiheadAttention:
    """The same attention as torch's module on [e_i ; E], all three projections in full."""
    width = attention.out.in_features
    dim = width // 2
    plain = nn.MultiheadAttention(width, attention.num_heads, batch_first=True, dtype=F64)
    query, key = attention.query_key.weight.chunk(2)
    candidate_query, candidate_value = attention.candidate.weight.chunk(2)
    query_bias, value_bias = attention.candidate.bias.chunk(2)
    # Noise where PooledAttention has no parameters: the result must not depend on it.
    candidate_key, key_bias = torch.randn(width, dim, dtype=F64), torch.randn(width, dtype=F64)
    with torch.no_grad():
        plain.in_proj_weight.copy_(
            torch.cat(
                (
                    torch.cat((query, candidate_query), 1),
                    torch.cat((key, candidate_key), 1),
                    torch.cat((attention.value.weight, candidate_value), 1),
                )
            )
        )
        plain.in_proj_bias.copy_(torch.cat((query_bias, key_bias, value_bias)))
        plain.out_proj.load_state_dict(attention.out.state_dict())
    return plain


def plain_pooling(
    attention: PooledAttention, item: Tensor, history: Tensor, mask: Tensor, mask_keys: bool
) -> Tensor:
    """Eq. 4–6 row by row: attend over [e_i ; E], then average."""
    plain = plain_attention(attention)
    rows = []
    for e, h, m in zip(item, history, mask, strict=True):
        x = torch.cat((h, e.expand(h.shape[0], -1)), 1)
        if not mask_keys:
            out = plain(x, x, x, need_weights=False)[0]
            rows.append((out * m.unsqueeze(1)).mean(0))
        else:
            # Nothing real: one behaviour of zeros.
            x = x[m] if m.any() else torch.cat((torch.zeros_like(e), e)).unsqueeze(0)
            rows.append(plain(x, x, x, need_weights=False)[0].mean(0))
    return torch.stack(rows)


def plain_scores(perceptron: BehavioralPerceptron, inputs: BehaviorInputs) -> Tensor:
    """Eq. 3–7, then the product of Eq. 8."""
    score = torch.ones(inputs.item.shape[0], dtype=F64)
    if perceptron.global_mlp is not None:
        score = perceptron.global_bias + perceptron.global_mlp(inputs.item).squeeze(1)
    if perceptron.local_mlp is not None:
        item, source, target, source_mask, target_mask = inputs
        keys = perceptron.mask_keys
        interests = torch.cat(
            (
                plain_pooling(perceptron.source_attention, item, source, source_mask, keys),
                plain_pooling(perceptron.target_attention, item, target, target_mask, keys),
            ),
            1,
        )
        score = score * perceptron.local_mlp(interests).squeeze(1)
    return score


OPTIONS = [
    dict(zip(("num_heads", "mask_keys", "use_global", "use_local"), values, strict=True))
    for values in itertools.product((1, 4), (True, False), (True, False), (True, False))
    if values[2] or values[3]
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_scores_are_those_of_plain_multihead_attention(options: dict[str, Any]) -> None:
    perceptron, inputs = trained(**options), behaviors()
    # Rounding of sums of some tens of terms of order 1.
    torch.testing.assert_close(
        perceptron.scores(inputs), plain_scores(perceptron, inputs), rtol=1e-12, atol=1e-12
    )


def assert_like_plain(
    attention: PooledAttention, item: Tensor, history: Tensor, mask: Tensor, mask_keys: bool
) -> None:
    """Values and all gradients are those of torch's module; one row has to have a history."""
    item, history = item.clone().requires_grad_(), history.clone().requires_grad_()
    length = history.shape[1]
    coefficients = torch.randn(len(item), 2 * DIM, dtype=F64)
    plain = plain_attention(attention)
    seen, real, padding, count = history, mask, None, torch.tensor(length)
    if mask_keys:
        # Where nothing is real there is one behaviour of zeros.
        none = ~mask.any(1)
        seen = history.masked_fill(none.view(-1, 1, 1), 0.0)
        real = torch.cat((mask[:, :1] | none.unsqueeze(1), mask[:, 1:]), 1)
        padding, count = ~real, real.sum(1, keepdim=True)
    x = torch.cat((seen, item.unsqueeze(1).expand(-1, length, -1)), 2)
    out = plain(x, x, x, key_padding_mask=padding, need_weights=False)[0]
    expected = (out * real.unsqueeze(2)).sum(1) / count
    wanted = torch.autograd.grad(
        (coefficients * expected).sum(),
        (item, history, plain.in_proj_weight, plain.out_proj.weight, plain.out_proj.bias),
    )
    pooled = attention(item, Padded(history, mask, mask_keys))
    # Rounding of sums of some tens of terms of order 1.
    torch.testing.assert_close(pooled, expected, rtol=1e-12, atol=1e-12)
    got = torch.autograd.grad(
        (coefficients * pooled).sum(),
        (
            item,
            history,
            attention.query_key.weight,
            attention.value.weight,
            attention.candidate.weight,
            attention.out.weight,
            attention.out.bias,
        ),
    )
    wanted_query, wanted_key, wanted_value = wanted[2].chunk(3)
    full = (
        wanted[0],
        wanted[1],
        torch.cat((wanted_query, wanted_key))[:, :DIM],
        wanted_value[:, :DIM],
        torch.cat((wanted_query, wanted_value))[:, DIM:],
        *wanted[3:],
    )
    for ours, theirs in zip(got, full, strict=True):
        # Rounding of sums over the batch of terms of order 1 to 10.
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("mask_keys", [True, False])
def test_gradients_are_those_of_plain_multihead_attention(mask_keys: bool) -> None:
    attention = PooledAttention(DIM, 4).double()
    item, history, _, mask, _ = behaviors()
    assert_like_plain(attention, item, history, mask, mask_keys)


@given(
    lengths=st.lists(st.integers(0, 20), min_size=1, max_size=12).filter(any),
    padding=st.integers(0, 3),
    gaps=st.booleans(),
    scores_per_part=st.sampled_from((0, 300, 2**15)),
    mask_keys=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_histories_of_any_lengths_are_pooled_like_whole_ones(
    lengths: list[int],
    padding: int,
    gaps: bool,
    scores_per_part: int,
    mask_keys: bool,
    seed: int,
) -> None:
    # From a part per length to a single one, with pads at the end and, with gaps, in between.
    torch.manual_seed(seed)
    batch, length = len(lengths), max(lengths) + padding
    mask = torch.arange(length) < torch.tensor(lengths).unsqueeze(1)
    if gaps:
        mask[:, :-1] &= torch.rand(batch, length - 1) < 0.5
        assume(mask.any())
    attention = PooledAttention(DIM, 4).double()
    item = torch.randn(batch, DIM, dtype=F64)
    history = torch.randn(batch, length, DIM, dtype=F64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_attention, "_SCORES_PER_PART", scores_per_part)
        assert_like_plain(attention, item, history, mask, mask_keys)


@given(
    counts=st.lists(st.integers(0, 5), min_size=2, max_size=6).filter(lambda c: any(c[1:])),
    missing=st.integers(0, _attention._STEP - 1),
    heads=st.integers(1, 4),
)
def test_the_split_by_length_is_the_cheapest(counts: list[int], missing: int, heads: int) -> None:
    length = _attention._STEP * (len(counts) - 1) - missing
    ends = [min(s * _attention._STEP, length) for s, n in enumerate(counts) for _ in range(n) if s]

    def cost(parts: list[tuple[int, int]]) -> int:
        return sum(1000 + rows * heads * end**2 for rows, end in parts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_attention, "_SCORES_PER_PART", 1000)
        parts = _attention._parts(counts, length, heads)
    kept = [end for rows, end in parts for _ in range(rows)]
    assert len(kept) == len(ends) and all(k >= e for k, e in zip(kept, ends, strict=True))
    # Every way to cut between rows of different lengths.
    places = [i for i in range(1, len(ends)) if ends[i - 1] < ends[i]]
    for cuts in itertools.chain.from_iterable(
        itertools.combinations(places, n) for n in range(len(places) + 1)
    ):
        bounds = itertools.pairwise([0, *cuts, len(ends)])
        assert cost(parts) <= cost([(b - a, ends[b - 1]) for a, b in bounds])


def test_batches_scored_together_weigh_what_each_weighs_alone() -> None:
    perceptron, inputs = trained(normalization="centered"), behaviors()
    scores = perceptron.scores(inputs)
    parts = [BehaviorInputs(*(x[rows] for x in inputs)) for rows in (slice(3), slice(3, None))]
    for part, together in zip(parts, scores.split([3, BATCH - 3]), strict=True):
        alone = perceptron(torch.zeros(len(together)), part)
        # Rounding of sums of some tens of terms of order 1.
        torch.testing.assert_close(perceptron.normalize(together), alone, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("error")
def test_many_batches_are_weighed_at_once() -> None:
    perceptron = trained()
    batches = [behaviors() for _ in range(3)]
    losses = torch.rand(3, BATCH, dtype=F64)

    def weights(losses: Tensor, *inputs: Tensor) -> Tensor:
        found: Tensor = perceptron(losses, BehaviorInputs(*inputs))
        return found

    stacked = [torch.stack(each) for each in zip(*batches, strict=True)]
    together = torch.vmap(weights)(losses, *stacked)
    alone = [weights(own, *batch) for own, batch in zip(losses, batches, strict=True)]
    # Products of float64 in another order.
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-12, atol=1e-12)


def padded(slices: HistorySlices) -> tuple[Tensor, Tensor]:
    """The same histories [B, N, D] with their mask."""
    places = zip(slices.start.tolist(), slices.length.tolist(), strict=True)
    rows = [slices.behaviors[start : start + length] for start, length in places]
    history = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=7.0)
    return history, torch.arange(history.shape[1]) < slices.length.unsqueeze(1)


@settings(max_examples=max(5, settings.default.max_examples // 5))
@given(
    lengths=st.lists(st.integers(0, 20), min_size=1, max_size=12),
    scores_per_part=st.sampled_from((0, 300, 2**15)),
    seed=st.integers(0, 1000),
)
def test_slices_are_pooled_like_padded_histories(
    lengths: list[int], scores_per_part: int, seed: int
) -> None:
    torch.manual_seed(seed)
    perceptron, num = trained(), max(lengths) + 3  # short enough for slices to overlap

    def some(order: list[int]) -> HistorySlices:
        start = torch.tensor([int(torch.randint(num - n + 1, ())) for n in order])
        embeddings = torch.randn(num, DIM, dtype=F64, requires_grad=True)
        return HistorySlices(embeddings, start, torch.tensor(order))

    item = torch.randn(len(lengths), DIM, dtype=F64, requires_grad=True)
    source, target = some(lengths), some(lengths[::-1])
    (source_history, source_mask), (target_history, target_mask) = padded(source), padded(target)
    same = BehaviorInputs(item, source_history, target_history, source_mask, target_mask)
    leaves = [item, source.behaviors, target.behaviors, *perceptron.parameters()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_attention, "_SCORES_PER_PART", scores_per_part)
        got, expected = (perceptron.scores(x) for x in (BehaviorInputs(item, source, target), same))
    coefficients = torch.randn(len(lengths), dtype=F64)
    # Rounding of sums of some tens of terms of order 1, and of gradients of order 1 to 100.
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(
        *(
            torch.autograd.grad(
                (coefficients * scores).sum(), leaves, materialize_grads=True, allow_unused=True
            )
            for scores in (got, expected)
        ),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("changes", "options", "named"),
    [
        ({"source_mask": torch.ones(2, 3, dtype=torch.bool)}, {}, "leave the mask out"),
        ({}, {"mask_keys": False}, "mask_keys=False"),
        ({"start": torch.tensor([0, 3])}, {}, "row 1 starts at 3 and has 2"),
        ({"start": torch.tensor([-1, 0])}, {}, "row 0 starts at -1"),
        ({"length": torch.tensor([1, -1])}, {}, "row 1 .* has -1"),
        ({"start": torch.tensor([0.0, 0.0])}, {}, "start .*float32"),
        ({"length": torch.tensor([1])}, {}, r"length .*\[1\]"),
        ({"behaviors": torch.randn(4, DIM + 1)}, {}, rf"behaviors .*\[4, {DIM + 1}\]"),
    ],
)
def test_slices_that_do_not_fit_are_named(
    changes: dict[str, Tensor], options: dict[str, Any], named: str
) -> None:
    slices = HistorySlices(torch.randn(4, DIM), torch.tensor([0, 1]), torch.tensor([2, 2]))
    slices = slices._replace(**{k: v for k, v in changes.items() if k != "source_mask"})
    inputs = BehaviorInputs(torch.randn(2, DIM), slices, slices, changes.get("source_mask"))
    with pytest.raises(ValueError, match=f"inputs.source_.*{named}"):
        BehavioralPerceptron(DIM, **options).scores(inputs)


def test_padded_histories_need_a_mask() -> None:
    history = torch.randn(2, 3, DIM)
    with pytest.raises(ValueError, match="source_mask is None"):
        BehavioralPerceptron(DIM).scores(BehaviorInputs(torch.randn(2, DIM), history, history))


def test_padding_changes_nothing() -> None:
    perceptron, inputs = trained(), behaviors()
    pads = 100 * torch.randn(BATCH, 5, DIM, dtype=F64)
    no = torch.zeros(BATCH, 5, dtype=torch.bool)
    longer = BehaviorInputs(
        item=inputs.item,
        source_history=torch.cat((inputs.source_history, pads), 1),
        target_history=torch.cat((pads, inputs.target_history), 1),
        source_mask=torch.cat((inputs.source_mask, no), 1),
        target_mask=torch.cat((no, inputs.target_mask), 1),
    )
    torch.testing.assert_close(
        perceptron.scores(longer), perceptron.scores(inputs), rtol=1e-12, atol=1e-12
    )


def test_the_order_of_a_history_does_not_matter() -> None:
    perceptron, inputs = trained(), behaviors()
    order = torch.randperm(SOURCE)
    shuffled = inputs._replace(
        source_history=inputs.source_history[:, order], source_mask=inputs.source_mask[:, order]
    )
    torch.testing.assert_close(
        perceptron.scores(shuffled), perceptron.scores(inputs), rtol=1e-12, atol=1e-12
    )


def test_only_a_cpu_is_asked_for_the_lengths() -> None:
    # Meta tensors hold no numbers: whatever waits for one, as a host would for a GPU, fails.
    attention = PooledAttention(DIM, 4).to("meta")
    item, history, _, mask, _ = (field.to("meta") for field in behaviors(torch.float32))
    assert attention(item, Padded(history, mask, True)).shape == (BATCH, 2 * DIM)


def test_a_batch_too_large_for_the_cache_is_pooled_in_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attention = PooledAttention(DIM, 4).double()
    item, history, _, mask, _ = behaviors()
    histories = Padded(history, mask, True)
    whole = attention(item, histories)
    sizes: list[int] = []
    average = attention._average

    def counted(key_weight: Tensor, candidate: Tensor, part: Part) -> Tensor:
        sizes.append(len(candidate))
        return average(key_weight, candidate, part)

    monkeypatch.setattr(attention, "_average", counted)
    monkeypatch.setattr("reweight.weighters._attention._SCORES_AT_ONCE", 3 * 4 * SOURCE**2)
    torch.testing.assert_close(attention(item, histories), whole, rtol=1e-13, atol=1e-13)
    assert sizes == [3, 2, 2]  # rows 0 and 1 have no history
    sizes.clear()
    monkeypatch.setattr("reweight.weighters._attention._SCORES_AT_ONCE", 1)
    torch.testing.assert_close(attention(item, histories), whole, rtol=1e-13, atol=1e-13)
    assert sizes == [1] * (BATCH - 2)


@pytest.mark.parametrize("mask_keys", [True, False])
@pytest.mark.parametrize("length", [0, 1, 5])
def test_an_empty_history_is_one_of_a_zero(mask_keys: bool, length: int) -> None:
    attention = PooledAttention(DIM, 4).double()
    nn.init.ones_(attention.out.bias)  # zeros are to be zeros whatever it is
    item, history = torch.randn(3, DIM, dtype=F64), torch.randn(3, length, DIM, dtype=F64)
    empty = torch.zeros(3, length, dtype=torch.bool)
    pooled = attention(item, Padded(history, empty, mask_keys))
    if mask_keys:
        zero = torch.zeros(3, 1, DIM, dtype=F64)
        expected = attention(item, Padded(zero, torch.ones(3, 1, dtype=torch.bool), True))
        assert not torch.allclose(pooled[0], pooled[1])  # the candidate counts
    else:
        expected = torch.zeros(3, 2 * DIM, dtype=F64)
    # A softmax over one score is exactly 1, and all else is the same sum.
    torch.testing.assert_close(pooled, expected, rtol=1e-14, atol=1e-14)
    for grad in torch.autograd.grad(pooled.sum(), list(attention.parameters())):
        assert torch.isfinite(grad).all()


def test_unmasked_keys_let_pads_in() -> None:
    inputs = behaviors()
    changed = inputs._replace(
        source_history=torch.where(inputs.source_mask.unsqueeze(2), inputs.source_history, 3.0)
    )
    strict, loose = trained(mask_keys=True), trained(mask_keys=False)
    some = inputs.source_mask.any(1) & ~inputs.source_mask.all(1)
    # Differently filled pads reach the loose one only.
    torch.testing.assert_close(strict.scores(changed), strict.scores(inputs), rtol=0, atol=1e-12)
    assert (loose.scores(changed) - loose.scores(inputs))[some].abs().min() > 1e-6


def test_softmax_weights_have_mean_gamma_and_follow_the_scores() -> None:
    perceptron, inputs = trained(normalization="softmax"), behaviors()
    weights = perceptron(torch.rand(BATCH, dtype=F64), inputs)
    torch.testing.assert_close(weights.mean(), perceptron.gamma, rtol=1e-14, atol=0)
    expected = perceptron.gamma * BATCH * perceptron.scores(inputs).softmax(0)
    torch.testing.assert_close(weights, expected, rtol=1e-14, atol=0)


def test_sigmoid_weights_do_not_depend_on_the_rest_of_the_batch() -> None:
    perceptron, inputs = trained(), behaviors()
    losses = torch.rand(BATCH, dtype=F64)
    first = BehaviorInputs(*(field[:4] for field in inputs))
    weights = perceptron(losses, inputs)
    torch.testing.assert_close(perceptron(losses[:4], first), weights[:4], rtol=1e-13, atol=0)
    assert ((weights > 0) & (weights < 2 * perceptron.gamma)).all()


def test_centered_weights_say_how_a_score_compares_with_its_batch() -> None:
    perceptron, inputs = trained(normalization="centered"), behaviors()
    losses = torch.rand(BATCH, dtype=F64)
    weights, scores = perceptron(losses, inputs), perceptron.scores(inputs)
    expected = perceptron.gamma * 2 * (scores - scores.mean()).sigmoid()
    torch.testing.assert_close(weights, expected, rtol=1e-14, atol=0)
    assert torch.equal(weights.argsort(), scores.argsort())
    # Of copies of one behaviour none stands out, whatever its score.
    copies = BehaviorInputs(*(field[:1].expand(BATCH, *field.shape[1:]) for field in inputs))
    torch.testing.assert_close(
        perceptron(losses, copies), perceptron.gamma.expand(BATCH), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("normalization", ["sigmoid", "centered", "softmax"])
def test_gamma_scales_all_weights(normalization: str) -> None:
    perceptron, inputs = trained(normalization=normalization), behaviors()
    losses = torch.rand(BATCH, dtype=F64)
    before, gamma = perceptron(losses, inputs), perceptron.gamma
    with torch.no_grad():
        perceptron.raw_gamma.add_(2.0)
    torch.testing.assert_close(
        perceptron(losses, inputs) / perceptron.gamma, before / gamma, rtol=1e-14, atol=0
    )


def test_weight_decay_pulls_gamma_to_one_or_with_relu_to_zero() -> None:
    for gamma_map, limit in (("softplus", 1.0), ("relu", 0.0)):
        perceptron = BehavioralPerceptron(DIM, gamma_map=gamma_map)
        optimizer = torch.optim.SGD([perceptron.raw_gamma], lr=0.1, weight_decay=1.0)
        perceptron.raw_gamma.grad = torch.zeros(())
        for _ in range(200):
            optimizer.step()
        assert float(perceptron.gamma.detach()) == pytest.approx(limit, abs=1e-6)


def test_two_zero_branches_are_a_saddle_and_the_unit_bias_leaves_it() -> None:
    # With γ_1 = γ_2 = 0 neither moves; b = 1 lets γ_2 move whatever the global MLP says.
    inputs, coefficients = behaviors(), torch.randn(BATCH, dtype=F64)
    sizes = {}
    for bias in (0.0, 1.0):
        perceptron = BehavioralPerceptron(DIM, global_bias=bias).double()
        for parameter in perceptron.global_mlp.parameters():
            nn.init.zeros_(parameter)
        perceptron(torch.rand(BATCH, dtype=F64), inputs).mul(coefficients).sum().backward()
        sizes[bias] = float(perceptron.local_mlp[-1].weight.grad.abs().sum())
    assert sizes[0.0] == 0.0
    assert sizes[1.0] > 0.0


def test_attention_starts_like_torchs() -> None:
    torch_module = nn.MultiheadAttention(2 * 32, 4)
    ours = PooledAttention(32, 4)
    spread = torch_module.in_proj_weight.detach().std()
    for block in (ours.query_key, ours.value, ours.candidate):
        # 2,048 or more uniform draws: the standard error of the ratio is at most 1 %.
        assert float(block.weight.detach().std() / spread) == pytest.approx(1.0, abs=0.05)
    ratio = ours.out.weight.detach().std() / torch_module.out_proj.weight.detach().std()
    assert float(ratio) == pytest.approx(1.0, abs=0.05)
    assert not ours.candidate.bias.any()
    assert not ours.out.bias.any()


def test_mlp_shapes_follow_the_options() -> None:
    perceptron = BehavioralPerceptron(20, global_hidden=(), local_hidden=(32, 16))
    assert [tuple(p.shape) for p in perceptron.global_mlp.parameters()] == [(1, 20), (1,)]
    linear = [layer for layer in perceptron.local_mlp if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [
        (80, 32),
        (32, 16),
        (16, 1),
    ]


def test_inputs_of_another_dtype_are_converted() -> None:
    perceptron, inputs = trained().float(), behaviors(torch.float32)
    half = BehaviorInputs(*(f.half() if f.is_floating_point() else f for f in inputs))
    scores = perceptron.scores(half)
    assert scores.dtype == torch.float32
    # Inputs rounded to 11 bits, amplified by the perturbed layers.
    torch.testing.assert_close(scores, perceptron.scores(inputs), rtol=0.02, atol=0.02)


def test_autocast_works() -> None:
    perceptron, inputs = trained().float(), behaviors(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        scores = perceptron.scores(inputs)
    # bfloat16 carries 8 bits; a few layers of it.
    torch.testing.assert_close(scores.float(), perceptron.scores(inputs), rtol=0.1, atol=0.1)


def test_histories_are_not_looked_at_without_the_local_branch() -> None:
    perceptron = trained(use_local=False)
    item = torch.randn(2, DIM, dtype=F64)
    nothing = torch.empty(0)
    assert perceptron.scores(BehaviorInputs(item, *[nothing] * 4)).shape == (2,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_global": False, "use_local": False}, "use_global=False.*use_local=False"),
        ({"num_heads": 5}, r"num_heads=5\b.*\b12\b"),
        ({"num_heads": 0}, "num_heads=0"),
        (
            {"normalization": "relu"},
            "normalization='relu'.*'sigmoid', 'centered', 'softmax'",
        ),
        ({"gamma_map": "exp"}, "gamma_map='exp'"),
        ({"hidden": 0}, r"hidden.*\[0\]"),
        ({"local_hidden": (8, 0)}, r"local_hidden.*\[8, 0\]"),
    ],
    ids=str,
)
def test_wrong_options_are_refused_in_words(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BehavioralPerceptron(DIM, **options)


def test_any_number_of_heads_is_fine_without_attention() -> None:
    assert BehavioralPerceptron(DIM, num_heads=5, use_local=False).local_mlp is None


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"item": torch.zeros(BATCH, 5)}, ValueError, r"inputs\.item.*\[9, 5\].*\b6\b"),
        ({"item": torch.zeros(DIM)}, ValueError, r"inputs\.item.*\[6\]"),
        (
            {"source_history": torch.zeros(BATCH, SOURCE, 5)},
            ValueError,
            r"inputs\.source_history.*\[9, 7, 5\].*\[9, N, 6\]",
        ),
        (
            {"target_history": torch.zeros(3, TARGET, DIM)},
            ValueError,
            r"inputs\.target_history.*\[3, 4, 6\]",
        ),
        ({"target_mask": torch.ones(BATCH, TARGET)}, TypeError, r"inputs\.target_mask.*float32"),
        (
            {"source_mask": torch.ones(BATCH, TARGET, dtype=torch.bool)},
            ValueError,
            r"inputs\.source_mask.*\[9, 4\].*\[9, 7\]",
        ),
    ],
    ids=str,
)
def test_wrong_inputs_are_refused_in_words(
    change: dict[str, Tensor], error: type[Exception], message: str
) -> None:
    inputs = behaviors(torch.float32)._replace(**change)
    with pytest.raises(error, match=message):
        BehavioralPerceptron(DIM)(torch.rand(BATCH), inputs)


def test_inputs_have_to_be_behavior_inputs_for_these_losses() -> None:
    perceptron, inputs = BehavioralPerceptron(DIM), behaviors(torch.float32)
    with pytest.raises(TypeError, match=r"\btuple\b"):
        perceptron(torch.rand(BATCH), tuple(inputs))
    with pytest.raises(ValueError, match=r"\b9 behaviours.*\[4\]"):
        perceptron(torch.rand(4), inputs)
