"""Pre-norm models of norms without a weight: where a norm stands in a model, and what it costs there.

A file for each family, and what they share in `block.py`. No dropout, no vocabulary: the inputs are embeddings, of
tokens and of their positions, and the output is what a vocabulary's head would be given. Weights are random.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from benchmarks.providers import Provider

from .block import Block, Past, Size
from .fp8 import ByteGPT, ByteLinear
from .gpt import GPT, Llama4, Speedrun
from .hyper_connected import HyperConnected
from .transnormer import GatedTransNormer, TransNormer

__all__ = ["Caches", "Model", "Size", "build"]

Caches = list[tuple[Tensor, ...]]  # of each block


class Last(nn.Module):
    """The norm of what the last block leaves."""

    def __init__(self, kind: type[Block], norms: Provider) -> None:
        super().__init__()
        self.kind, self.norms = kind, norms

    def forward(self, x: Tensor, residual: Any) -> Tensor:
        return self.norms.norm(*self.kind.leave(x, residual))


class Model(nn.Module):
    KINDS: ClassVar[dict[str, type[Block]]] = {
        "TransNormer": TransNormer, "gated TransNormer": GatedTransNormer, "QK-norm GPT": GPT,
        "speedrun GPT": Speedrun, "Llama 4": Llama4, "mHC GPT": HyperConnected, "fp8 GPT": ByteGPT,
    }  # fmt: skip

    def __init__(self, kind: str, size: Size, norms: Provider) -> None:
        super().__init__()
        self.kind, self.size = self.KINDS[kind], size
        self.blocks = nn.ModuleList(self.kind(size, norms) for _ in range(size.layers))
        self.last = Last(self.kind, norms)
        self.places = torch.arange(size.length)

    def compile_parts(self) -> None:
        """One compilation for all layers; another for each provider's, with and without gradients."""
        import torch._dynamo.config

        torch._dynamo.config.recompile_limit = 64
        for part in (*self.blocks, self.last):
            part.compile(dynamic=False, fullgraph=True)

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        return self._through(tokens, positions, [None] * len(self.blocks))

    def decode(self, tokens: Tensor, positions: Tensor, place: Tensor, caches: Caches) -> Tensor:
        """One token of each sequence, (batch, 1, dim), that stands at `place`; the caches gain it in place."""
        seen = (self.places <= place).unsqueeze(0)
        return self._through(tokens, positions, [Past(place, seen, kept) for kept in caches])

    def _through(self, tokens: Tensor, positions: Tensor, past: list[Any]) -> Tensor:
        x, residual = self.kind.enter(tokens, positions)
        for block, of_block in zip(self.blocks, past, strict=True):
            x, residual = block(x, residual, of_block)
        return self.last(x, residual)

    def caches(self, dtype: torch.dtype) -> Caches:
        """For a decode that begins."""
        with torch.device(self.places.device):
            return [self.kind.empty(self.size, dtype) for _ in self.blocks]


def build(
    kind: str, size: Size, norms: Provider, dtype: torch.dtype, device: str, wide: bool = False
) -> tuple[Model, list[Tensor]]:
    """The model and [tokens, positions], of the same values for every provider; `wide`: these values in float32."""
    torch.manual_seed(0)
    with torch.device(device):
        model = Model(kind, size, norms).to(dtype)
        inputs = [torch.randn(size.batch, size.length, size.dim).to(dtype) for _ in range(2)]
    if wide:
        model, inputs = model.float(), [t.float() for t in inputs]
    for part in model.modules():
        if isinstance(part, ByteLinear):
            part.fix()
    return model, [t.requires_grad_() for t in inputs]
