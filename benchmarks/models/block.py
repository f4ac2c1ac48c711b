"""What the blocks share: sizes, the way through a pre-norm block, attention with and without a cache, rotary positions.

A block takes (x, residual), adds them, and returns its output and the new residual stream, so that every addition is
next to a norm. To decode a token it takes what is kept of those before as well.
"""

import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.providers import Provider


@dataclasses.dataclass(frozen=True)
class Size:
    batch: int
    length: int
    dim: int
    heads: int
    layers: int


class Past(NamedTuple):
    """Of one token that is decoded. All of it is on the device: where the token stands is never read by the host."""

    place: Tensor  # (1,), int64
    seen: Tensor  # (1, length), whether a place is no later
    kept: tuple[Tensor, ...]  # of the tokens before, of one block; written in place


def linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)


class Block(nn.Module):
    trains = True

    def __init__(self, size: Size, norms: Provider) -> None:
        super().__init__()
        self.norms, self.heads = norms, size.heads

    def attend(self, x: Tensor, past: Past | None) -> Tensor:
        raise NotImplementedError

    def mix(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor, residual: Any, past: Past | None = None) -> tuple[Tensor, Any]:
        y, residual = self.norms.add_norm(x, residual)
        y, residual = self.norms.add_norm(self.attend(y, past), residual)
        return self.mix(y), residual

    @staticmethod
    def enter(tokens: Tensor, positions: Tensor) -> tuple[Tensor, Any]:
        """x and the stream of the first block."""
        return tokens, positions

    @staticmethod
    def leave(x: Tensor, residual: Any) -> tuple[Tensor, Tensor | None]:
        """What the last norm is of: one tensor, or two that it adds."""
        return x, residual

    @staticmethod
    def empty(size: Size, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """What is kept of the tokens before, when there are none: keys and values, for `size.length` tokens."""
        shape = (size.batch, size.heads, size.length, size.dim // size.heads)
        return torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)

    def split(self, x: Tensor) -> Tensor:
        """(batch, length, heads * d) as (batch, length, heads, d)."""
        return x.unflatten(-1, (self.heads, -1))


def attention(q: Tensor, k: Tensor, v: Tensor, past: Past | None) -> Tensor:
    """Causal softmax attention of (batch, length, heads, d), as (batch, length, heads * d)."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    if past is None:
        attended = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    else:
        keys, values = past.kept
        keys.index_copy_(2, past.place, k)
        values.index_copy_(2, past.place, v)
        attended = torch.nn.functional.scaled_dot_product_attention(q, keys, values, attn_mask=past.seen)
    return attended.transpose(1, 2).flatten(-2)


class Rotary(nn.Module):
    """Rotary positions of (batch, length, heads, d), in float32 whatever the model's dtype is."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        d = size.dim // size.heads
        pace = 10_000.0 ** (torch.arange(0, d, 2) * (-1 / d))
        angles = (torch.arange(size.length)[:, None] * pace).unsqueeze(-2)
        self.cos, self.sin = angles.cos(), angles.sin()  # no buffers: those would be cast with the model

    def forward(self, x: Tensor, past: Past | None) -> Tensor:
        cos, sin = (self.cos, self.sin) if past is None else (t[past.place] for t in (self.cos, self.sin))
        a, b = x.float().chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)
