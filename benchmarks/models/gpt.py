"""GPTs that normalize queries and keys without a weight: plainly, as nanoGPT's speedrun does, and as Llama 4 does."""

import torch
from torch import Tensor, nn

from benchmarks.providers import Provider

from .block import Block, Past, Rotary, Size, attention, linear


class GPT(Block):
    """Softmax attention of normalized queries and keys, then a perceptron."""

    def __init__(self, size: Size, norms: Provider) -> None:
        super().__init__(size, norms)
        self.qkv, self.out = linear(size.dim, 3 * size.dim), linear(size.dim, size.dim)
        self.up, self.down = linear(size.dim, 4 * size.dim), linear(4 * size.dim, size.dim)

    def attend(self, x: Tensor, past: Past | None) -> Tensor:
        q, k, v = (self.split(t) for t in self.qkv(x).chunk(3, -1))  # views into the packed projection
        return self.out(attention(self.placed(q, past), self.placed(k, past), v, past))

    def placed(self, t: Tensor, past: Past | None) -> Tensor:
        """Queries or keys, normalized head by head, with their positions."""
        return self.norms.norm(t)

    def mix(self, x: Tensor) -> Tensor:
        return self.down(torch.nn.functional.gelu(self.up(x)))


class Speedrun(GPT):
    """As in nanoGPT's speedrun: queries and keys are normalized, then rotated; each block begins with a learned mixture
    of the stream and of what the first block was given; the perceptron squares its relu."""

    def __init__(self, size: Size, norms: Provider) -> None:
        super().__init__(size, norms)
        self.lambdas, self.rotary = nn.Parameter(torch.tensor([1.0, 0.25])), Rotary(size)

    def forward(
        self, x: Tensor, residual: tuple[Tensor, Tensor], past: Past | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        stream, first = residual
        stream = self.lambdas[0] * (stream + x) + self.lambdas[1] * first
        y, stream = self.norms.add_norm(self.attend(self.norms.norm(stream), past), stream)
        return self.mix(y), (stream, first)

    def placed(self, t: Tensor, past: Past | None) -> Tensor:
        return self.rotary(self.norms.norm(t), past)

    def mix(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x)).square())

    @staticmethod
    def enter(tokens: Tensor, positions: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        return tokens, (positions, positions.clone())  # one tensor twice would be another compilation

    @staticmethod
    def leave(x: Tensor, residual: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return x, residual[0]


class Llama4(GPT):
    """As in Llama 4 (its `L2Norm`): queries and keys are rotated, then normalized; a gated perceptron. All heads have
    their own keys, and the norms of the stream no weight."""

    def __init__(self, size: Size, norms: Provider) -> None:
        super().__init__(size, norms)
        self.gate, self.rotary = linear(size.dim, 4 * size.dim), Rotary(size)

    def placed(self, t: Tensor, past: Past | None) -> Tensor:
        return self.norms.norm(self.rotary(t, past))

    def mix(self, x: Tensor) -> Tensor:
        return self.down(torch.nn.functional.silu(self.gate(x)) * self.up(x))
