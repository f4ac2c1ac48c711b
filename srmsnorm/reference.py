"""The definition in plain PyTorch: ground truth of the tests, "eager" of the benchmarks.

    h = input (+ residual)
    r = (mean(h^2, last dim) + eps)^-1/2
    y = h * r

h is summed once in the accumulation type (float64 for float64, float32 for the rest) and y is rounded once, to the
input's dtype or another. eps,
a number that is added to such a tensor, is first rounded to its type. With a gate, a = activation(gate):

    z = (h * r) * a              r of h
    z = (h * a) * r              r of h * a, where the gate comes before the norm

Arguments are not checked.
"""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["ACTIVATIONS", "accumulation_dtype", "add_srms_norm", "default_eps", "gated_srms_norm", "rstd", "srms_norm"]

# By the names that the operators know.
ACTIVATIONS: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda gate: gate,
    "silu": torch.nn.functional.silu,
    "swish": torch.nn.functional.silu,
    "sigmoid": torch.sigmoid,
}


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


def _sum(input: Tensor, residual: Tensor | None) -> Tensor:
    h = input.to(accumulation_dtype(input.dtype))
    return h if residual is None else h + residual.to(h.dtype)


def _rstd(h: Tensor, eps: float | None) -> Tensor:
    eps = default_eps(h.dtype) if eps is None else eps
    return torch.rsqrt(h.square().mean(-1, keepdim=True) + eps)


def _norm(h: Tensor, eps: float | None) -> Tensor:
    return h * _rstd(h, eps)
