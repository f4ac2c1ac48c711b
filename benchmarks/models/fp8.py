"""A GPT whose products behind the norms are of fp8 bytes, which the norm writes."""

import torch
from torch import Tensor, nn

from benchmarks.providers import Provider

from .block import Block, Past, Size, attention, linear


class ByteLinear(nn.Module):
    """Of bytes by bytes, each row with its scale; on a CPU, and where the result is float32, of what they stand for."""

    bytes: Tensor
    scale: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight: Tensor | None = linear(inputs, outputs).weight

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
        self.qkv, self.out = ByteLinear(size.dim, 3 * size.dim), linear(size.dim, size.dim)
        self.up, self.down = ByteLinear(size.dim, 4 * size.dim), linear(4 * size.dim, size.dim)

    def forward(self, x: Tensor, residual: Tensor, past: Past | None = None) -> tuple[Tensor, Tensor]:
        q, scale, residual = self.norms.add_quantized(x, residual)
        queries, keys, values = (self.split(t) for t in self.qkv(q, scale, x.dtype).chunk(3, -1))
        attended = attention(queries, keys, values, past)
        q, scale, residual = self.norms.add_quantized(self.out(attended), residual)
        return self.down(torch.nn.functional.gelu(self.up(q, scale, x.dtype))), residual
