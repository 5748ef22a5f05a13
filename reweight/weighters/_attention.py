"""Self-attention over a user's history as seen by a candidate item, pooled to one vector."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

# Scores held at once on a CPU: 2 MB in float32. Larger tensors leave the cache, and the allocator
# asks the system for fresh pages each time: measured up to twice as slow.
_SCORES_AT_ONCE = 2**19


class PooledAttention(nn.Module):
    r"""Multi-head self-attention over ``[e_i ; E]``, averaged over the history (BIAO, Eq. 4–6).

    The value is that of ``nn.MultiheadAttention`` on the concatenated sequence followed by a mean.
    Since only the mean is wanted, and every position carries the same candidate ``E``, most of
    the work can be done once per row rather than once per position:

    * ``W [e_i ; E] + b = W_1 e_i + (W_2 E + b)``: the candidate's half is projected once.
    * In the keys that half, and the bias, add the same number to all scores of a query. The
      softmax does not see it, so these parameters do not exist here.
    * The mean over the queries is taken of the attention matrix. What remains is one average of
      the history per head, so values and output are projected once per row too.

    The attention matrix is computed explicitly, and kept for the backward pass
    (``B · num_heads · N²`` numbers). A fused kernel cannot pool the queries before it multiplies
    with the values; measured on a CPU with histories of 20 to 200 behaviours it is slower.

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
            Interests, shape [B, 2·D]; zeros for rows without a real behaviour.
        """
        chunks = 1
        if item.device.type == "cpu":
            numbers = item.shape[0] * self.num_heads * history.shape[1] ** 2
            chunks = max(1, math.ceil(numbers / _SCORES_AT_ONCE))
        if chunks == 1:
            return self._pool(item, history, mask)
        parts = zip(item.chunk(chunks), history.chunk(chunks), mask.chunk(chunks), strict=True)
        return torch.cat([self._pool(*part) for part in parts])

    def _pool(self, item: Tensor, history: Tensor, mask: Tensor) -> Tensor:
        candidate_query, candidate_value = self.candidate(item).chunk(2, dim=-1)
        query, key = self.query_key(history).chunk(2, dim=-1)
        query = self._split_heads(query + candidate_query.unsqueeze(1))
        key = self._split_heads(key)
        # Folding scale and mask into the product spares two passes over the largest tensor.
        scores = torch.baddbmm(
            self._key_bias(mask, like=query),
            query,
            key.transpose(1, 2),
            alpha=query.shape[-1] ** -0.5,
        )
        share = self._share(mask.to(history.dtype))
        attention = share.repeat_interleave(self.num_heads, 0).unsqueeze(1) @ scores.softmax(-1)
        averages = attention.view(item.shape[0], self.num_heads, history.shape[1]) @ history
        value_weight = self.value.weight.view(self.num_heads, -1, history.shape[2])
        values = torch.einsum("bhd,hwd->bhw", averages, value_weight).flatten(1)
        # Shares sum to 1, to 0 for an empty history, or to n/N with unmasked keys; whatever is
        # the same at all positions is scaled by that sum.
        total = share.sum(1, keepdim=True)
        pooled = values + total * candidate_value
        output: Tensor = pooled @ self.out.weight.t() + total * self.out.bias
        return output

    def _split_heads(self, x: Tensor) -> Tensor:
        """[B, N, width] to [B·heads, N, width/heads]."""
        batch, length, width = x.shape
        heads = x.view(batch, length, self.num_heads, width // self.num_heads)
        return heads.transpose(1, 2).flatten(0, 1)

    def _key_bias(self, mask: Tensor, *, like: Tensor) -> Tensor:
        """What is added to the scores, [B·heads, 1, N]: -inf for keys not to be attended to."""
        bias = like.new_zeros(mask.shape)
        if self.mask_keys:
            # An empty history attends to its pads, with share 0: -inf everywhere would be NaN.
            bias.masked_fill_(~mask & mask.any(1, keepdim=True), -math.inf)
        return bias.repeat_interleave(self.num_heads, 0).unsqueeze(1)

    def _share(self, real: Tensor) -> Tensor:
        """Each position's share in the mean, [B, N], from 1 where it is real and 0 elsewhere."""
        if self.mask_keys:
            return real / real.sum(1, keepdim=True).clamp(min=1)
        return real / max(real.shape[1], 1)
