"""Self-attention over a user's history, conditioned on a candidate item, pooled to one vector."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from reweight._tensors import can_branch_on
from reweight.weighters._histories import Histories, Part

# On a CPU, rows of similar length are pooled together, in parts.
# The number of scores in memory at a time: 2 MB in float32. Larger tensors do not fit the cache,
# and the allocator requests new pages from the system each time: measured up to twice as slow.
_SCORES_AT_ONCE = 2**19
# The fixed cost of a part, in units of scores: about 80 µs, or 200 µs with the backward pass.
_SCORES_PER_PART = 2**15
# Lengths are rounded up, so that with four heads the scores of a key fill whole vector registers: a
# softmax over 7 keys takes four times as long as one over 8.
_STEP = 4


class PooledAttention(nn.Module):
    r"""Multi-head self-attention over ``[e_i ; E]``, averaged over the history (BIAO, Eq. 4–6).

    The result equals that of ``nn.MultiheadAttention`` on the concatenated sequence, followed by a
    mean. Only the mean is needed, and every position has the same candidate ``E``, so most of the
    work is done once per row and not once per position:

    * ``W [e_i ; E] + b = W_1 e_i + (W_2 E + b)``: the candidate's half is projected once.
    * In the keys, the candidate's half and the bias add the same number to all scores of a query.
      The softmax does not depend on it, so these parameters do not exist here.
    * A score is ``(W_1 e_i + W_2 E + b)ᵀ W_k e_j``, so ``W_1ᵀ`` is multiplied into the weights of
      the keys. The other factor is the history itself, which is the same for all heads and is not
      copied for each. The candidate adds one number per key, which is the same for all queries.
    * The mean over the queries is applied to the attention matrix. What remains is one average of
      the history per head, so values and output are also projected once per row.

    The attention matrix is computed explicitly and stored for the backward pass
    (``B · num_heads · N²`` numbers). A fused kernel cannot pool the queries before it multiplies
    with the values. On a CPU, with histories of 20 to 200 behaviours, it was measured to be slower.

    On a CPU the rows are pooled in parts of similar length. If padding is not attended to, each
    part is cut after its last real behaviour. Rows without a behaviour are left out. On other
    devices all rows are one part, because the host would have to wait for the lengths.

    Args:
        dim: Width D of the candidate and of each behaviour.
        num_heads: Number of heads; must divide 2·D.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        width = 2 * dim
        self.num_heads = num_heads
        self.query_key = nn.Linear(dim, 2 * width, bias=False)
        self.value = nn.Linear(dim, width, bias=False)
        self.candidate = nn.Linear(dim, 2 * width)  # the candidate's half of query and value
        self.out = nn.Linear(width, width)
        # The initialization of nn.MultiheadAttention: Glorot for the joint [3·width, width] matrix,
        # whose blocks these three are, zero biases, and the default output weight.
        bound = math.sqrt(6.0 / (3 * width + width))
        for block in (self.query_key, self.value, self.candidate):
            nn.init.uniform_(block.weight, -bound, bound)
        nn.init.zeros_(self.candidate.bias)
        nn.init.zeros_(self.out.bias)

    def forward(self, item: Tensor, histories: Histories) -> Tensor:
        """Pool the history.

        Args:
            item: Candidates, shape [B, D].
            histories: One for each.

        Returns:
            Interests, shape [B, 2·D].
        """
        shape = (self.num_heads, -1, item.shape[1])
        candidate_query, candidate_value = self.candidate(item).chunk(2, dim=-1)
        query_weight, key_weight = self.query_key.weight.view(2, *shape).unbind()
        key_weight = key_weight.transpose(1, 2) * key_weight.shape[1] ** -0.5
        candidate_query = _by_head(candidate_query.unflatten(1, (self.num_heads, -1)), key_weight)
        key_weight = torch.bmm(query_weight.transpose(1, 2), key_weight.transpose(1, 2))
        averages = self._averages(key_weight.flatten(0, 1), candidate_query, histories)
        values = _by_head(averages, self.value.weight.view(shape)).flatten(1)
        # A term that is the same at all positions is scaled by the sum of the shares. An empty
        # history counts as one zero vector, whose average is zero.
        total = histories.total()
        pooled = values + total * candidate_value
        output: Tensor = pooled @ self.out.weight.t() + total * self.out.bias
        return output

    def _averages(self, key_weight: Tensor, candidate: Tensor, histories: Histories) -> Tensor:
        """The average history of each head, [B, heads, D], zeros where all shares are zero."""
        if candidate.device.type == "cpu":
            steps = (histories.needed() + (_STEP - 1)) // _STEP
            if can_branch_on(steps):
                return self._averages_by_length(key_weight, candidate, histories, steps)
        return self._average(key_weight, candidate, histories.part(histories.longest))

    def _averages_by_length(
        self, key_weight: Tensor, candidate: Tensor, histories: Histories, steps: Tensor
    ) -> Tensor:
        """The same, rows of similar length together; ``steps`` are lengths in units of _STEP."""
        counts = steps.bincount(minlength=1).tolist()
        parts = _parts(counts, histories.longest, self.num_heads)
        if len(parts) == 1 and not counts[0]:
            return self._average(key_weight, candidate, histories.part(parts[0][1]))
        rows = steps.argsort()[counts[0] :]
        averages = torch.cat(
            [
                self._average(
                    key_weight, candidate.index_select(0, part), histories.part(end, part)
                )
                for part, (_, end) in zip(
                    torch.split(rows, [n for n, _ in parts]), parts, strict=True
                )
            ]
        )
        return averages.new_zeros(candidate.shape).index_copy(0, rows, averages)

    def _average(self, key_weight: Tensor, candidate: Tensor, part: Part) -> Tensor:
        """Attend and take the mean over the queries.

        Args:
            key_weight: ``W_1ᵀ W_k`` of all heads, scaled, [heads·D, D].
            candidate: The candidate's half of the queries, ``W_kᵀ (W_2 E + b)``, [B, heads, D].
            part: The histories of B rows.

        Returns:
            Averages, [B, heads, D].
        """
        history, bias, share = part
        batch, length, dim = history.shape
        heads = self.num_heads
        key = (history @ key_weight.t()).view(batch, length * heads, dim)
        bias = torch.baddbmm(bias.unsqueeze(2), history, candidate.transpose(1, 2))
        scores = torch.bmm(key, history.transpose(1, 2)).add_(bias.view(batch, length * heads, 1))
        # Over the first dimension of [keys, heads·queries] a softmax works on full vector registers
        # at every length. Over the last one it takes 2 to 20 times as long where keys are few.
        attention = scores.view(batch, length, heads * length).softmax(1)
        attention = attention.view(batch, length * heads, length)
        pooled = torch.bmm(share.unsqueeze(1), attention.transpose(1, 2))
        return torch.bmm(pooled.view(batch, length, heads).transpose(1, 2), history)


def _by_head(x: Tensor, weight: Tensor) -> Tensor:
    """A matrix product per head: [B, heads, a] with [heads, b, a] gives [B, heads, b]."""
    return torch.bmm(x.transpose(0, 1), weight.transpose(1, 2)).transpose(0, 1)


def _parts(counts: list[int], length: int, heads: int) -> list[tuple[int, int]]:
    """The cheapest split of rows in order of length: (rows, positions kept) of each part.

    ``counts[s]`` rows need ``s`` steps. Rows that need none are left out. If there are no other
    rows, the result is one part without rows, so that the parameters get a gradient of zeros. Parts
    that are too large for the cache are divided into equal pieces.
    """
    levels = [(n, min(s * _STEP, length)) for s, n in enumerate(counts) if s and n]
    # best[n]: cost and parts of the cheapest split of the first n levels.
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
