"""PyTorch itself: the definition, eager and compiled, and F.rms_norm."""

import gc
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from srmsnorm.reference import quantize

from .provider import EPS, Gating, Provider, provider


def _backward_formula(grad_output: Tensor, y: Tensor, rstd: Tensor, grad_sum: Tensor | None) -> Tensor:
    g, h = grad_output.to(rstd.dtype), y.to(rstd.dtype)
    grad = rstd * (g - h * (h * g).mean(-1, keepdim=True))
    return grad if grad_sum is None else grad + grad_sum.to(rstd.dtype)


def _one_gradient(grad_output: Tensor, y: Tensor, rstd: Tensor, grad_sum: Tensor | None) -> Tensor:
    return _backward_formula(grad_output, y, rstd, grad_sum).to(grad_output.dtype)


def _both_gradients(grad_output: Tensor, y: Tensor, rstd: Tensor, grad_sum: Tensor | None) -> tuple[Tensor, Tensor]:
    grad = _backward_formula(grad_output, y, rstd, grad_sum)
    return grad.to(grad_output.dtype), grad


def _wide_gradient(grad_output: Tensor, x: Tensor, rstd: Tensor) -> Tensor:
    y = x.to(rstd.dtype) * rstd
    return _backward_formula(grad_output, y, rstd, None).to(x.dtype)


def _activated(gate: Tensor, activation: str | None) -> tuple[Tensor, Tensor]:
    """The activated gate, and its derivative."""
    if activation is None:
        return gate, torch.ones_like(gate)
    s = torch.sigmoid(gate)
    return (s, s * (1 - s)) if activation == "sigmoid" else (gate * s, s * (1 + gate * (1 - s)))


def _gated_gradients(
    grad_output: Tensor, x: Tensor, gate: Tensor, rstd: Tensor, activation: str | None, norm_first: bool
) -> tuple[Tensor, Tensor]:
    g, h = grad_output.to(rstd.dtype), x.to(rstd.dtype)
    a, slope = _activated(gate.to(rstd.dtype), activation)
    t, of_t = (h, g * a) if norm_first else (h * a, g)
    y = t * rstd
    grad = rstd * (of_t - y * (y * of_t).mean(-1, keepdim=True))
    grad_x, grad_gate = (grad, g * y * slope) if norm_first else (grad * a, grad * h * slope)
    return grad_x.to(x.dtype), grad_gate.to(gate.dtype)


@provider("to", computes="the definition in plain PyTorch, srmsnorm.reference", keeps="what autograd keeps")
class Eager(Provider):
    def __init__(self) -> None:
        from srmsnorm import reference

        self._norm: Callable[..., Any] = reference.srms_norm
        self._add_norm: Callable[..., Any] = reference.add_srms_norm
        self._backward: Callable[..., Any] = _one_gradient
        self._backward_pair: Callable[..., Any] = _both_gradients
        self._gated: Callable[..., Any] = reference.gated_srms_norm
        self._gated_backward: Callable[..., Any] = _gated_gradients
        self._wide_backward: Callable[..., Any] = _wide_gradient
        self._rstd: Callable[..., Any] = reference.rstd
        self._quantized: Callable[..., Any] = reference.srms_norm_quantized
        self._add_quantized: Callable[..., Any] = reference.add_srms_norm_quantized

    def norm(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return self._norm(x, residual, eps=EPS)

    def add_norm(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        return self._add_norm(x, residual, eps=EPS)

    def saved(self, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, ...]:
        h = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
        h = h if residual is None else h + residual
        rstd = torch.rsqrt(h.square().mean(-1, keepdim=True) + EPS)
        return (h * rstd).to(x.dtype), rstd

    def backward(self, grad_output: Tensor, saved: tuple[Tensor, ...], grad_sum: Tensor | None = None) -> Tensor:
        return self._backward(grad_output, *saved, grad_sum)

    def backward_pair(
        self, grad_output: Tensor, saved: tuple[Tensor, ...], grad_sum: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return self._backward_pair(grad_output, *saved, grad_sum)

    def gated(self, x: Tensor, gate: Tensor, how: Gating) -> Tensor:
        return self._gated(x, gate, activation=how.activation, norm_before_gate=how.norm_first, eps=EPS)

    def gated_saved(self, x: Tensor, gate: Tensor, how: Gating) -> tuple[Tensor, ...]:
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        h = x.to(wide) if how.norm_first else x.to(wide) * _activated(gate.to(wide), how.activation)[0]
        return x, gate, torch.rsqrt(h.square().mean(-1, keepdim=True) + EPS)

    def gated_backward(self, grad_output: Tensor, saved: tuple[Tensor, ...], how: Gating) -> tuple[Tensor, Tensor]:
        return self._gated_backward(grad_output, *saved, how.activation, how.norm_first)

    def wide_norm(self, x: Tensor) -> Tensor:
        return self._norm(x, eps=EPS, dtype=torch.float32)

    def wide_saved(self, x: Tensor) -> tuple[Tensor, ...]:
        return x, torch.rsqrt(x.float().square().mean(-1, keepdim=True) + EPS)

    def wide_backward(self, grad_output: Tensor, saved: tuple[Tensor, ...]) -> Tensor:
        return self._wide_backward(grad_output, *saved)

    def rstd(self, x: Tensor) -> Tensor:
        return self._rstd(x, eps=EPS)

    def quantized(self, x: Tensor, group_size: int | None) -> tuple[Tensor, Tensor]:
        return self._quantized(x, group_size=group_size, eps=EPS)

    def add_quantized(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self._add_quantized(x, residual, eps=EPS)


@provider("toc", computes="torch.compile of the definition, for each shape anew", keeps="what the partitioner chooses")
class Compiled(Eager):
    compiles = True
    caches = True
    mode: ClassVar[str | None] = None

    def __init__(self) -> None:
        super().__init__()
        import torch._functorch.config

        # Backward with retain_graph=True is refused where the compiler may overwrite what forward kept.
        torch._functorch.config.donated_buffer = False
        for name, function in list(vars(self).items()):
            setattr(self, name, torch.compile(function, dynamic=False, fullgraph=True, mode=self.mode))

    def new_shape(self) -> None:
        torch.compiler.reset()
        gc.collect()


@provider("tocm", computes="the same with mode max-autotune-no-cudagraphs", keeps="what the partitioner chooses")
class CompiledAutotuned(Compiled):
    mode = "max-autotune-no-cudagraphs"


@provider("rms", computes="F.rms_norm without a weight, of x + residual", keeps="x or the sum, rstd")
class RMSNorm(Provider):
    residual_roundings = 3  # the rounded sum enters h and rstd
    gated_roundings = 3  # of y, of the activated gate, of their product

    def norm(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        h = x if residual is None else x + residual
        return torch.nn.functional.rms_norm(h, x.shape[-1:], eps=EPS).to(x.dtype)

    def add_norm(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        h = x + residual
        return torch.nn.functional.rms_norm(h, x.shape[-1:], eps=EPS).to(x.dtype), h

    def saved(self, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, ...]:
        h = x if residual is None else x + residual
        if h.is_cuda:
            return h, torch.ops.aten._fused_rms_norm(h, h.shape[-1:], None, EPS)[1]
        with torch.enable_grad():  # on a CPU the gradient is what autograd makes of several operators
            leaf = h.detach().requires_grad_()
            return leaf, torch.nn.functional.rms_norm(leaf, h.shape[-1:], eps=EPS)

    def backward(self, grad_output: Tensor, saved: tuple[Tensor, ...], grad_sum: Tensor | None = None) -> Tensor:
        h, kept = saved
        if h.is_cuda:
            mask = [True, False]
            grad = torch.ops.aten._fused_rms_norm_backward(grad_output, h, h.shape[-1:], kept, None, mask)[0]
        else:
            (grad,) = torch.autograd.grad(kept, h, grad_output, retain_graph=True)
        return grad if grad_sum is None else grad.add_(grad_sum)

    def backward_pair(
        self, grad_output: Tensor, saved: tuple[Tensor, ...], grad_sum: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        grad = self.backward(grad_output.to(saved[0].dtype), saved, grad_sum)
        return grad.to(grad_output.dtype), grad

    def wide_norm(self, x: Tensor) -> Tensor:
        return self.norm(x.float())

    def quantized(self, x: Tensor, group_size: int | None) -> tuple[Tensor, Tensor]:
        return quantize(self.norm(x), group_size=group_size)

    def add_quantized(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, sum = self.add_norm(x, residual)
        return *quantize(y), sum

    def gated(self, x: Tensor, gate: Tensor, how: Gating) -> Tensor:
        a = {None: lambda g: g, "silu": torch.nn.functional.silu, "sigmoid": torch.sigmoid}[how.activation](gate)
        if how.norm_first:
            return (self.norm(x) * a).to(x.dtype)
        return self.norm(x * a).to(x.dtype)

    def gated_saved(self, x: Tensor, gate: Tensor, how: Gating) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            x, gate = (t.detach().requires_grad_() for t in (x, gate))
            return x, gate, self.gated(x, gate, how)

    def gated_backward(self, grad_output: Tensor, saved: tuple[Tensor, ...], how: Gating) -> tuple[Tensor, Tensor]:
        *leaves, z = saved
        grad_x, grad_gate = torch.autograd.grad(z, leaves, grad_output, retain_graph=True)
        return grad_x, grad_gate
