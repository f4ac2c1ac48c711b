"""A GPT of four residual streams: hyper-connections, weighed by the float32 norm of all four (mHC)."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.providers import Provider

from .block import Past, Size, attention, linear
from .gpt import GPT


class HyperConnected(GPT):
    """Four residual streams, as in DeepSeek-V4's hyper-connections: the norm of all four, in float32, is projected to
    what they are weighed by before each layer and behind it, and mixed by; that by a softmax, and not Sinkhorn's
    iteration. Queries and keys are not normalized, and x goes through untouched."""

    STREAMS = 4

    def __init__(self, size: Size, norms: Provider) -> None:
        super().__init__(size, norms)
        weights = self.STREAMS * (2 + self.STREAMS)
        self.of_attention, self.of_mix = (linear(self.STREAMS * size.dim, weights) for _ in range(2))

    def forward(self, x: Tensor, residual: Tensor, past: Past | None = None) -> tuple[Tensor, Tensor]:
        residual = self.connected(residual, self.of_attention, partial(self.attend, past=past))
        return x, self.connected(residual, self.of_mix, self.mix)

    def connected(self, streams: Tensor, weigh: nn.Linear, layer: Callable[[Tensor], Tensor]) -> Tensor:
        weights = self.norms.wide_norm(streams.flatten(-2)) @ weigh.weight.float().t()
        before, behind, mixing = weights.split((self.STREAMS, self.STREAMS, self.STREAMS**2), -1)
        mixing = mixing.unflatten(-1, (self.STREAMS, self.STREAMS)).softmax(-1)
        x = (torch.sigmoid(before).unsqueeze(-2) @ streams.float()).squeeze(-2)
        out = layer(self.norms.norm(x.to(streams.dtype))).unsqueeze(-2)
        return (mixing @ streams.float() + torch.sigmoid(behind).unsqueeze(-1) * out).to(streams.dtype)

    def attend(self, x: Tensor, past: Past | None) -> Tensor:
        q, k, v = (self.split(t) for t in self.qkv(x).chunk(3, -1))
        return self.out(attention(q, k, v, past))

    @staticmethod
    def enter(tokens: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        return tokens, (tokens + positions).unsqueeze(-2).repeat_interleave(HyperConnected.STREAMS, -2)

    @staticmethod
    def leave(x: Tensor, residual: Tensor) -> tuple[Tensor, None]:
        return residual.mean(-2), None
