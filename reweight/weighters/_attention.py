"""Self-attention over a user's history as seen by a candidate item, pooled to one vector."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

# On a CPU, rows of like lengths are pooled together, in parts.
# Scores held at once: 2 MB in float32. Larger tensors leave the cache, and the allocator asks the
# system for fresh pages each time: measured up to twice as slow.
_SCORES_AT_ONCE = 2**19
# What a part costs besides its scores, in scores: some 80 µs, or 200 with the backward pass.
_SCORES_PER_PART = 2**15
# Lengths are rounded up to whole vector registers. The softmax of 7 scores takes four times as
# long as that of 8, and 25 take twice as long as 24.
_STEP = 8


class PooledAttention(nn.Module):
    r"""Multi-head self-attention over ``[e_i ; E]``, averaged over the history (BIAO, Eq. 4–6).

    The value is that of ``nn.MultiheadAttention`` on the concatenated sequence followed by a mean.
    Since only the mean is wanted, and every position carries the same candidate ``E``, most of
    the work can be done once per row rather than once per position:

    * ``W [e_i ; E] + b = W_1 e_i + (W_2 E + b)``: the candidate's half is projected once.
    * In the keys that half, and the bias, add the same number to all scores of a query. The
      softmax does not see it, so these parameters do not exist here.
    * A score is ``qᵀ W_k e_j``, so ``W_kᵀ`` goes to the queries' weights. What is left on the
      other side is the history itself, for all heads the same, and neither it nor the queries
      have to be copied head by head.
    * The mean over the queries is taken of the attention matrix. What remains is one average of
      the history per head, so values and output are projected once per row too.

    The attention matrix is computed explicitly, and kept for the backward pass
    (``B · num_heads · N²`` numbers). A fused kernel cannot pool the queries before it multiplies
    with the values; measured on a CPU with histories of 20 to 200 behaviours it is slower.

    On a CPU the rows are pooled in parts of like lengths, each cut after its last real behaviour
    where pads are not attended to, and rows without a behaviour are left out. Elsewhere the
    shapes stay as they are: the host would have to wait for the lengths.

    A row without a real behaviour has no mean. With ``mask_keys`` it counts as one behaviour of
    zeros, so that what comes out still depends on the candidate: with zeros, all candidates of
    such users would get one and the same weight.

    Args:
        dim: Width D of the candidate and of each behaviour.
        num_heads: Number of heads; divides 2·D.
        mask_keys: True: padded positions are not attended to, and the mean is over the real
            ones. False, as the authors' code has it: padded positions are attended to, their own
            outputs count as zero, and the mean divides by N.
    """

    def __init__(self, dim: int, num_heads: int, *, mask_keys: bool) -> None:
        super().__init__()
        width = 2 * dim
        self.num_heads = num_heads
        self.mask_keys = mask_keys
        self.query_key = nn.Linear(dim, 2 * width, bias=False)
        self.value = nn.Linear(dim, width, bias=False)
        self.candidate = nn.Linear(dim, 2 * width)  # the candidate's half of query and value
        self.out = nn.Linear(width, width)
        # Glorot for the joint [3·width, width] matrix of which these three are the blocks, zero
        # biases and the default output weight: the initialisation of nn.MultiheadAttention.
        bound = math.sqrt(6.0 / (3 * width + width))
        for block in (self.query_key, self.value, self.candidate):
            nn.init.uniform_(block.weight, -bound, bound)
        nn.init.zeros_(self.candidate.bias)
        nn.init.zeros_(self.out.bias)

    def forward(self, item: Tensor, history: Tensor, mask: Tensor) -> Tensor:
        """Pool the history.

        Args:
            item: Candidates, shape [B, D].
            history: Behaviours, shape [B, N, D].
            mask: True where the behaviour is real, shape [B, N], bool.

        Returns:
            Interests, shape [B, 2·D]. Rows without a real behaviour: see above; zeros if not
            ``mask_keys``.
        """
        shape = (self.num_heads, -1, history.shape[2])
        candidate_query, candidate_value = self.candidate(item).chunk(2, dim=-1)
        query_weight, key_weight = self.query_key.weight.view(2, *shape).unbind()
        key_weight = key_weight.transpose(1, 2) * key_weight.shape[1] ** -0.5
        query_weight = torch.bmm(key_weight, query_weight).flatten(0, 1)
        candidate_query = _by_head(candidate_query.unflatten(1, (self.num_heads, -1)), key_weight)
        share = self._share(mask.to(history.dtype))
        averages = self._averages(query_weight, candidate_query, history, mask, share)
        values = _by_head(averages, self.value.weight.view(shape)).flatten(1)
        # Shares sum to 1, or to n/N with unmasked keys; whatever is the same at all positions is
        # scaled by that sum. An empty history is a single zero, whose average is zero too.
        total = share.sum(1, keepdim=True)
        if self.mask_keys:
            total = total + ~mask.any(1, keepdim=True)
        pooled = values + total * candidate_value
        output: Tensor = pooled @ self.out.weight.t() + total * self.out.bias
        return output

    def _averages(
        self, query_weight: Tensor, candidate: Tensor, history: Tensor, mask: Tensor, share: Tensor
    ) -> Tensor:
        """The average history of each head, [B, heads, D], zeros where all shares are zero."""
        length = history.shape[1]
        columns = (history, self._key_bias(mask, like=history), share)
        if history.device.type != "cpu" or not length:
            return self._average(query_weight, candidate, *columns)
        if self.mask_keys:
            needed = (mask * torch.arange(1, length + 1)).amax(1)
        else:
            needed = mask.any(1) * length
        steps = (needed + (_STEP - 1)) // _STEP
        try:
            counts = steps.bincount(minlength=1).tolist()
        except RuntimeError:  # inside torch.vmap there are no values to go by
            return self._average(query_weight, candidate, *columns)
        parts = _parts(counts, length, self.num_heads)
        if len(parts) == 1 and not counts[0]:
            return self._average(query_weight, candidate, *(c[:, : parts[0][1]] for c in columns))
        rows = steps.argsort()[counts[0] :]
        averages = torch.cat(
            [
                self._average(
                    query_weight,
                    candidate.index_select(0, part),
                    *(column[:, :end].index_select(0, part) for column in columns),
                )
                for part, (_, end) in zip(
                    torch.split(rows, [n for n, _ in parts]), parts, strict=True
                )
            ]
        )
        return averages.new_zeros(candidate.shape).index_copy(0, rows, averages)

    def _average(
        self, query_weight: Tensor, candidate: Tensor, history: Tensor, bias: Tensor, share: Tensor
    ) -> Tensor:
        """Attend and take the mean over the queries.

        Args:
            query_weight: ``W_kᵀ W_1`` of all heads, scaled, [heads·D, D].
            candidate: The candidate's half of the queries, ``W_kᵀ (W_2 E + b)``, [B, heads, D].
            history: Behaviours, [B, N, D].
            bias: What is added to the scores of each key, [B, N].
            share: Each query's share in the mean, [B, N].

        Returns:
            Averages, [B, heads, D].
        """
        batch, length, dim = history.shape
        heads = self.num_heads
        query = (history @ query_weight.t()).view(batch, length, heads, dim)
        query = (query + candidate.unsqueeze(1)).view(batch, length * heads, dim)
        scores = torch.baddbmm(bias.unsqueeze(1), query, history.transpose(1, 2))
        attention = scores.softmax(-1).view(batch, length, heads * length)
        pooled = torch.bmm(share.unsqueeze(1), attention).view(batch, heads, length)
        return torch.bmm(pooled, history)

    def _key_bias(self, mask: Tensor, *, like: Tensor) -> Tensor:
        """What is added to the scores, [B, N]: -inf for keys not to be attended to."""
        bias = like.new_zeros(mask.shape)
        if self.mask_keys:
            # An empty history attends to its pads, with share 0: -inf everywhere would be NaN.
            bias.masked_fill_(~mask & mask.any(1, keepdim=True), -math.inf)
        return bias

    def _share(self, real: Tensor) -> Tensor:
        """Each position's share in the mean, [B, N], from 1 where it is real and 0 elsewhere."""
        if self.mask_keys:
            return real / real.sum(1, keepdim=True).clamp(min=1)
        return real / max(real.shape[1], 1)


def _by_head(x: Tensor, weight: Tensor) -> Tensor:
    """Each head's own product: [B, heads, a] by [heads, b, a] to [B, heads, b]."""
    return torch.bmm(x.transpose(0, 1), weight.transpose(1, 2)).transpose(0, 1)


def _parts(counts: list[int], length: int, heads: int) -> list[tuple[int, int]]:
    """The cheapest split of rows in order of length: (rows, positions kept) of each part.

    ``counts[s]`` rows need ``s`` steps. Those that need none are left out; if there are no others,
    the one part has no rows, so that the parameters keep a gradient, of zeros. Parts too large
    for the cache come in equal pieces.
    """
    levels = [(n, min(s * _STEP, length)) for s, n in enumerate(counts) if s and n]
    # The cheapest split of the first levels, none of them to all: its cost and its parts.
    best: list[tuple[int, list[tuple[int, int]]]] = [(0, [])]
    for last in range(len(levels)):
        rows, end = 0, levels[last][1]
        splits = []
        for first in range(last, -1, -1):
            rows += levels[first][0]
            cost, parts = best[first]
            cost += _SCORES_PER_PART + rows * heads * end**2
            splits.append((cost, [*parts, (rows, end)]))
        best.append(min(splits))
    pieces = [(0, 0)] if not levels else []
    for rows, end in best[-1][1]:
        num = min(rows, math.ceil(rows * heads * end**2 / _SCORES_AT_ONCE))
        pieces += [(rows // num + (i < rows % num), end) for i in range(num)]
    return pieces
