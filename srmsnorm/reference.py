"""The definition in plain PyTorch: ground truth of the tests, "eager" of the benchmarks.

    h = input (+ residual)
    r = (mean(h^2, last dim) + eps)^-1/2
    y = h * r

h is summed once in the accumulation type (float64 for float64, float32 for the rest) and y is rounded once, to the
input's dtype or another. eps,
a number that is added to such a tensor, is first rounded to its type. With a gate, a = activation(gate):

    z = (h * r) * a              r of h
    z = (h * a) * r              r of h * a, where the gate comes before the norm

Quantised, y is rounded to the input's dtype, and divided by the largest |y| of its row or group:

    q = sat(y / scale)           scale = max(min(max |y|, upper) / largest q, smallest scale)

Arguments are not checked.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "ACTIVATIONS",
    "LARGEST",
    "accumulation_dtype",
    "add_srms_norm",
    "add_srms_norm_quantized",
    "default_eps",
    "gated_srms_norm",
    "quantize",
    "rstd",
    "srms_norm",
    "srms_norm_quantized",
]

# By the names that the operators know.
ACTIVATIONS: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda gate: gate,
    "silu": torch.nn.functional.silu,
    "swish": torch.nn.functional.silu,
    "sigmoid": torch.sigmoid,
}


# Of the dtypes of quantised results.
LARGEST = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0, torch.int8: 127.0}


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for float16, bfloat16 and float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def default_eps(dtype: torch.dtype) -> float:
    """What ``eps=None`` means: the machine epsilon of the accumulation type, as in ``torch.nn.functional.rms_norm``."""
    return torch.finfo(accumulation_dtype(dtype)).eps


def srms_norm(
    input: Tensor, residual: Tensor | None = None, *, eps: float | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """The norm of ``input`` (+ ``residual``); the operator of the same name says more."""
    return _norm(_sum(input, residual), eps).to(dtype or input.dtype)


def add_srms_norm(
    input: Tensor, residual: Tensor, *, eps: float | None = None, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """The norm of ``input + residual``, and that sum in the residual's dtype."""
    h = _sum(input, residual)
    return _norm(h, eps).to(dtype or input.dtype), h.to(residual.dtype)


def rstd(input: Tensor, residual: Tensor | None = None, *, eps: float | None = None) -> Tensor:
    """What the norm multiplies a row by."""
    return _rstd(_sum(input, residual), eps).squeeze(-1)


def gated_srms_norm(
    input: Tensor,
    gate: Tensor,
    *,
    activation: str | None = None,
    norm_before_gate: bool = True,
    eps: float | None = None,
) -> Tensor:
    """The norm of ``input`` times the activated gate, or of that product."""
    h = _sum(input, None)
    a = ACTIVATIONS[activation](gate.to(h.dtype))
    z = _norm(h, eps) * a if norm_before_gate else _norm(h * a, eps)
    return z.to(input.dtype)


def quantize(
    y: Tensor,
    *,
    dtype: torch.dtype = torch.float8_e4m3fn,
    scale: float | Tensor | str | None = None,
    group_size: int | None = None,
    power_of_two: bool = False,
    scale_ub: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Bytes and scales of what is normalized and rounded. By tensors alone, as PyTorch on a GPU multiplies by the
    reciprocal of a number that it is to divide by."""
    most, y = LARGEST[dtype], y.float()
    if scale is not None:
        scale = _given(scale, y, most)
        return _saturated(y * (1 / scale), dtype), scale
    parts = y.unsqueeze(-2) if group_size is None else y.unflatten(-1, (-1, group_size))
    largest = parts.abs().amax(-1)
    bounded = largest if scale_ub is None else largest.clamp(max=scale_ub)
    scale = (bounded / torch.full_like(bounded, most)).clamp(
        min=torch.finfo(torch.float32).eps if dtype == torch.int8 else 1 / (512 * most)
    )
    if power_of_two:  # the exponent, rounded up
        scale = (scale.view(torch.int32) + 0x7FFFFF).bitwise_and(0x7F800000).view(torch.float32)
    scale = torch.where(largest.isfinite(), scale, torch.nan)
    q = _saturated(parts / scale.unsqueeze(-1), dtype).flatten(-2)
    if group_size is None:
        return q, scale
    return q, scale.movedim(-1, 0).clone(memory_format=torch.contiguous_format).movedim(0, -1)


def srms_norm_quantized(
    input: Tensor, residual: Tensor | None = None, *, eps: float | None = None, **options: Any
) -> tuple[Tensor, Tensor]:
    """The norm of ``input`` (+ ``residual``) in bytes, and their scales."""
    return quantize(srms_norm(input, residual, eps=eps), **options)


def add_srms_norm_quantized(
    input: Tensor, residual: Tensor, *, eps: float | None = None, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """The same of ``input + residual``, and that sum in the residual's dtype."""
    y, sum = add_srms_norm(input, residual, eps=eps)
    return *quantize(y, **options), sum


def _given(scale: float | Tensor | str, y: Tensor, most: float) -> Tensor:
    if isinstance(scale, Tensor):
        return scale
    if isinstance(scale, str):  # "bound": the smallest 2^e with 4^e most^2 >= dim: |y| is at most the root of dim
        e = -32
        while 4**e * most**2 < y.shape[-1]:
            e += 1
        scale = 2.0**e
    return torch.full((1,), scale, dtype=torch.float32, device=y.device)


def _saturated(values: Tensor, dtype: torch.dtype) -> Tensor:
    values = values.clamp(-LARGEST[dtype], LARGEST[dtype])
    return (values.nan_to_num(0).round() if dtype == torch.int8 else values).to(dtype)


def _sum(input: Tensor, residual: Tensor | None) -> Tensor:
    h = input.to(accumulation_dtype(input.dtype))
    return h if residual is None else h + residual.to(h.dtype)


def _rstd(h: Tensor, eps: float | None) -> Tensor:
    eps = default_eps(h.dtype) if eps is None else eps
    return torch.rsqrt(h.square().mean(-1, keepdim=True) + eps)


def _norm(h: Tensor, eps: float | None) -> Tensor:
    return h * _rstd(h, eps)
