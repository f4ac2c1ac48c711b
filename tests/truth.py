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
    dh = project(g, y, r)
    return dh if grad_sum is None else dh + grad_sum.double()


def activated(gate: Tensor, activation: str | None):
    """(a, its slope) in float64."""
    g = gate.double()
    if activation is None:
        return g, torch.ones_like(g)
    s, complement = torch.sigmoid(g), torch.sigmoid(-g)
    return (s, s * complement) if activation == "sigmoid" else (g * s, s * (1 + g * complement))


def gated(input: Tensor, gate: Tensor, activation: str | None, norm_before_gate: bool, eps: float | None = None):
    """(z, rstd) in float64."""
    eps = default_eps(input.dtype) if eps is None else rounded_eps(eps, input.dtype)
    x, (a, _) = input.double(), activated(gate, activation)
    h = x if norm_before_gate else x * a
    rstd = (h.square().mean(-1) + eps).rsqrt()
    y = h * rstd.unsqueeze(-1)
    return y * a if norm_before_gate else y, rstd


def gated_backward(grad_output, input, gate, rstd, activation: str | None, norm_before_gate: bool):
    """(the input's gradient, the gate's) in float64."""
    dz, x, r = grad_output.double(), input.double(), rstd.double().unsqueeze(-1)
    a, slope = activated(gate, activation)
    if norm_before_gate:
        return project(dz * a, x * r, r), dz * x * r * slope
    dt = project(dz, x * a * r, r)
    return dt * a, dt * x * slope


def project(g: Tensor, y: Tensor, r: Tensor) -> Tensor:
    return r * (g - y * (y * g).mean(-1, keepdim=True))


def forward_extended(input: Tensor, eps: float):
    """y in numpy's extended precision."""
    h = input.cpu().numpy().astype(np.longdouble)
    return h / np.sqrt((h * h).mean(-1, keepdims=True) + np.longdouble(eps))
