"""A layer of a transformer, and its low-rank adaptation."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention


class TransformerLayer(nn.Module):
    """GPT-2's layer, with torch's attention.

    Args:
        width: of the residual stream, ``[B, N, width]``.
        num_heads: of the attention.
        causal: whether a position sees those before it only.
    """

    def __init__(self, width: int, num_heads: int, causal: bool = False) -> None:
        super().__init__()
        self.num_heads, self.causal = num_heads, causal
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.together = nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.queries_keys_values(self.before(x)).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        attended = scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.together(attended.transpose(1, 2).flatten(2))
        out: Tensor = x + self.narrow(gelu(self.wide(self.between(x)), approximate="tanh"))
        return out


class LowRank(nn.Module):
    """A frozen linear layer and a trained product of two narrow ones (LoRA)."""

    def __init__(self, frozen: nn.Linear, rank: int = 8) -> None:
        super().__init__()
        self.frozen = frozen.requires_grad_(False)
        self.down = nn.Linear(frozen.in_features, rank, bias=False)
        self.up = nn.Linear(rank, frozen.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.frozen(x) + self.up(self.down(x))
        return out
