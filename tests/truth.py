"""The definition and its gradient in float64, from the operands as they are; and in extended precision for float64."""

import numpy as np
import torch
from torch import Tensor

from srmsnorm.reference import accumulation_dtype, default_eps


def forward(input: Tensor, residual: Tensor | None = None, eps: float | None = None):
    """(y, h, rstd) in float64."""
    eps = default_eps(input.dtype) if eps is None else rounded_eps(eps, input.dtype)
    h = input.double() if residual is None else input.double() + residual.double()
    rstd = (h.square().mean(-1) + eps).rsqrt()
    return h * rstd.unsqueeze(-1), h, rstd


def rounded_eps(eps: float, dtype) -> float:
    """eps in the accumulation type."""
    return float(torch.tensor(eps, dtype=torch.float64).to(accumulation_dtype(dtype)))


def rounded_sum(input: Tensor, residual: Tensor) -> Tensor:
    """h as it is returned: one addition in the accumulation type, one rounding. Exact."""
    accumulation = accumulation_dtype(input.dtype)
    return (input.to(accumulation) + residual.to(accumulation)).to(residual.dtype)


def backward(grad_output: Tensor, y: Tensor, rstd: Tensor, grad_sum: Tensor | None = None) -> Tensor:
    """dh in float64."""
    g, y, r = grad_output.double(), y.double(), rstd.double().unsqueeze(-1)
    dh = r * (g - y * (y * g).mean(-1, keepdim=True))
    return dh if grad_sum is None else dh + grad_sum.double()


def forward_extended(input: Tensor, eps: float):
    """y in numpy's extended precision."""
    h = input.cpu().numpy().astype(np.longdouble)
    return h / np.sqrt((h * h).mean(-1, keepdims=True) + np.longdouble(eps))
