"""The definition in plain PyTorch: ground truth of the tests, "eager" of the benchmarks.

    h = input (+ residual)
    r = (mean(h^2, last dim) + eps)^-1/2
    y = h * r

h is summed once in the accumulation type (float64 for float64, float32 for the rest) and rounded once, at the end. eps,
a number that is added to such a tensor, is first rounded to its type. Arguments are not checked.
"""

import torch
from torch import Tensor

__all__ = ["accumulation_dtype", "add_srms_norm", "default_eps", "srms_norm"]


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for float16, bfloat16 and float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def default_eps(dtype: torch.dtype) -> float:
    """What ``eps=None`` means: the machine epsilon of the accumulation type, as in ``torch.nn.functional.rms_norm``."""
    return torch.finfo(accumulation_dtype(dtype)).eps


def srms_norm(input: Tensor, residual: Tensor | None = None, *, eps: float | None = None) -> Tensor:
    """The norm of ``input`` (+ ``residual``); the operator of the same name says more."""
    return _norm(_sum(input, residual), input.dtype, eps)


def add_srms_norm(input: Tensor, residual: Tensor, *, eps: float | None = None) -> tuple[Tensor, Tensor]:
    """The norm of ``input + residual``, and that sum in the residual's dtype."""
    h = _sum(input, residual)
    return _norm(h, input.dtype, eps), h.to(residual.dtype)


def _sum(input: Tensor, residual: Tensor | None) -> Tensor:
    h = input.to(accumulation_dtype(input.dtype))
    return h if residual is None else h + residual.to(h.dtype)


def _norm(h: Tensor, dtype: torch.dtype, eps: float | None) -> Tensor:
    eps = default_eps(dtype) if eps is None else eps
    return (h * torch.rsqrt(h.square().mean(-1, keepdim=True) + eps)).to(dtype)
