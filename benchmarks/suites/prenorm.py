"""Pre-norm models of norms without a weight: where a norm stands in a model, and what it costs there.

Each block takes (x, residual), adds them, and returns its output and the new residual stream, so that every addition is
next to a norm. No dropout, no vocabulary head.
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from benchmarks.providers import Gating, Provider

CHUNK = 256  # tokens of linear attention that meet by a score matrix; beyond it by their sums


@dataclasses.dataclass(frozen=True)
class Size:
    batch: int
    length: int
    dim: int
    heads: int
    layers: int


def _linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)


class Block(nn.Module):
    trains = True

    def __init__(self, size: Size, norms: Provider) -> None:
        super().__init__()
        self.norms, self.heads = norms, size.heads

    def attend(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def mix(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        y, residual = self.norms.add_norm(x, residual)
        y, residual = self.norms.add_norm(self.attend(y), residual)
        return self.mix(y), residual

    @staticmethod
    def enter(residual: Tensor) -> Tensor:
        """The stream of the first block."""
        return residual

    @staticmethod
    def leave(residual: Tensor) -> Tensor:
        """What the last norm adds, of the last block's stream."""
        return residual

    def split(self, x: Tensor) -> Tensor:
        """(batch, length, heads * d) as (batch, heads, length, d)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class TransNormer(Block):
    """Linear attention whose output is normalized and gated, then a gated linear unit; no decay, no positions."""

    def __init__(self, size: Size, norms: Provider) -> None:
        super().__init__(size, norms)
        self.qkvu, self.out = _linear(size.dim, 4 * size.dim), _linear(size.dim, size.dim)
        self.gate, self.up = _linear(size.dim, 2 * size.dim), _linear(size.dim, 2 * size.dim)
        self.down = _linear(2 * size.dim, size.dim)

    def attend(self, x: Tensor) -> Tensor:
        q, k, v, u = self.qkvu(x).chunk(4, -1)
        q, k, v = self.split(torch.nn.functional.silu(q)), self.split(torch.nn.functional.silu(k)), self.split(v)
        return self.out(self.gated(linear_attention(q, k, v).transpose(1, 2).flatten(-2), u))

    def gated(self, attended: Tensor, u: Tensor) -> Tensor:
        return self.norms.norm(attended) * torch.sigmoid(u)

    def mix(self, x: Tensor) -> Tensor:
        return self.down(self.gate(x) * self.up(x))


class GatedTransNormer(TransNormer):
    """The same, its norm and gate one call."""

    def gated(self, attended: Tensor, u: Tensor) -> Tensor:
        return self.norms.gated(attended, u, Gating("sigmoid"))


def linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal, sum over j <= i of (q_i k_j) v_j, in chunks."""
    length = q.shape[-2]
    chunk = min(CHUNK, length)
    q, k, v = (t.unflatten(-2, (length // chunk, chunk)) for t in (q, k, v))
    within = (q @ k.transpose(-1, -2)).tril() @ v
    state = k.transpose(-1, -2) @ v
    before = state.cumsum(-3) - state
    return (within + q @ before).flatten(-3, -2)


class GPT(Block):
    """Softmax attention of normalized queries and keys, then a perceptron."""

    def __init__(self, size: Size, norms: Provider) -> None:
        super().__init__(size, norms)
        self.qkv, self.out = _linear(size.dim, 3 * size.dim), _linear(size.dim, size.dim)
        self.up, self.down = _linear(size.dim, 4 * size.dim), _linear(4 * size.dim, size.dim)

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)) for t in self.qkv(x).chunk(3, -1))
        q, k = self.norms.norm(q), self.norms.norm(k)  # of views into the packed projection
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        attended = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(attended.transpose(1, 2).flatten(-2))

    def mix(self, x: Tensor) -> Tensor:
        return self.down(torch.nn.functional.gelu(self.up(x)))


class HyperConnected(GPT):
    """Four residual streams, as in DeepSeek-V4's hyper-connections: the norm of all four, in float32, is projected to
    what they are weighed by before each layer and behind it, and mixed by; that by a softmax, and not Sinkhorn's
    iteration. Queries and keys are not normalized."""

    STREAMS = 4

    def __init__(self, size: Size, norms: Provider) -> None:
        super().__init__(size, norms)
        weights = self.STREAMS * (2 + self.STREAMS)
        self.of_attention, self.of_mix = (_linear(self.STREAMS * size.dim, weights) for _ in range(2))

    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        residual = residual + x.unsqueeze(-2)
        residual = self.connected(residual, self.of_attention, self.attend)
        return torch.zeros_like(x), self.connected(residual, self.of_mix, self.mix)

    def connected(self, streams: Tensor, weigh: nn.Linear, layer: Callable[[Tensor], Tensor]) -> Tensor:
        weights = self.norms.wide_norm(streams.flatten(-2)) @ weigh.weight.float().t()
        before, behind, mixing = weights.split((self.STREAMS, self.STREAMS, self.STREAMS**2), -1)
        mixing = mixing.unflatten(-1, (self.STREAMS, self.STREAMS)).softmax(-1)
        x = (torch.sigmoid(before).unsqueeze(-2) @ streams.float()).squeeze(-2)
        out = layer(self.norms.norm(x.to(streams.dtype))).unsqueeze(-2)
        return (mixing @ streams.float() + torch.sigmoid(behind).unsqueeze(-1) * out).to(streams.dtype)

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = (self.split(t) for t in self.qkv(x).chunk(3, -1))
        attended = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(attended.transpose(1, 2).flatten(-2))

    @staticmethod
    def enter(residual: Tensor) -> Tensor:
        return residual.unsqueeze(-2).repeat_interleave(HyperConnected.STREAMS, -2)

    @staticmethod
    def leave(residual: Tensor) -> Tensor:
        return residual.mean(-2)


class ByteLinear(nn.Module):
    """Of bytes by bytes, each row with its scale; on a CPU, and where the result is float32, of what they stand for."""

    bytes: Tensor
    scale: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight: Tensor | None = _linear(inputs, outputs).weight

    def fix(self) -> None:
        """Keeps the bytes alone."""
        from srmsnorm.reference import quantize

        assert self.weight is not None
        q, scale = quantize(self.weight.detach())
        self.weight = None
        self.register_buffer("bytes", q)
        self.register_buffer("scale", scale)

    def forward(self, q: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        flat, of_rows = q.flatten(0, -2), scale.flatten(0, -2)
        if q.is_cuda and dtype == torch.bfloat16:
            y = torch._scaled_mm(flat, self.bytes.t(), of_rows, self.scale.t(), out_dtype=dtype)
        else:
            y = ((flat.float() * of_rows) @ (self.bytes.float() * self.scale).t()).to(dtype)
        return y.unflatten(0, q.shape[:-1])


class ByteGPT(Block):
    """Inference: the products behind the norms are of bytes, which the norm writes."""

    trains = False

    def __init__(self, size: Size, norms: Provider) -> None:
        super().__init__(size, norms)
        self.qkv, self.out = ByteLinear(size.dim, 3 * size.dim), _linear(size.dim, size.dim)
        self.up, self.down = ByteLinear(size.dim, 4 * size.dim), _linear(4 * size.dim, size.dim)

    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        q, scale, residual = self.norms.add_quantized(x, residual)
        queries, keys, values = (self.split(t) for t in self.qkv(q, scale, x.dtype).chunk(3, -1))
        attended = torch.nn.functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        q, scale, residual = self.norms.add_quantized(self.out(attended.transpose(1, 2).flatten(-2)), residual)
        return self.down(torch.nn.functional.gelu(self.up(q, scale, x.dtype))), residual


class Model(nn.Module):
    KINDS: ClassVar[dict[str, type[Block]]] = {
        "TransNormer": TransNormer, "TransNormer, gate fused": GatedTransNormer, "QK-norm GPT": GPT,
        "mHC GPT": HyperConnected, "fp8 GPT": ByteGPT,
    }  # fmt: skip

    def __init__(self, kind: str, size: Size, norms: Provider) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(self.KINDS[kind](size, norms) for _ in range(size.layers))
        self.kind, self.norms = self.KINDS[kind], norms

    def compile_blocks(self) -> None:
        """One compilation for all layers; another for each provider's, with and without gradients."""
        import torch._dynamo.config

        torch._dynamo.config.recompile_limit = 64
        for block in self.blocks:
            block.compile(dynamic=False, fullgraph=True)

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        x, residual = tokens, self.kind.enter(positions)
        for block in self.blocks:
            x, residual = block(x, residual)
        return self.norms.norm(x, self.kind.leave(residual))


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
