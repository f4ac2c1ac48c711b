"""PyTorch itself: the definition, eager and compiled, and F.rms_norm."""

import gc
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from .provider import EPS, Provider, provider


def _backward_formula(grad_output: Tensor, y: Tensor, rstd: Tensor, grad_sum: Tensor | None) -> Tensor:
    g, h = grad_output.to(rstd.dtype), y.to(rstd.dtype)
    grad = rstd * (g - h * (h * g).mean(-1, keepdim=True))
    return grad if grad_sum is None else grad + grad_sum.to(rstd.dtype)


def _one_gradient(grad_output: Tensor, y: Tensor, rstd: Tensor, grad_sum: Tensor | None) -> Tensor:
    return _backward_formula(grad_output, y, rstd, grad_sum).to(grad_output.dtype)


def _both_gradients(grad_output: Tensor, y: Tensor, rstd: Tensor, grad_sum: Tensor | None) -> tuple[Tensor, Tensor]:
    grad = _backward_formula(grad_output, y, rstd, grad_sum)
    return grad.to(grad_output.dtype), grad


@provider("to", computes="the definition in plain PyTorch, srmsnorm.reference", keeps="what autograd keeps")
class Eager(Provider):
    def __init__(self) -> None:
        from srmsnorm import reference

        self._norm: Callable[..., Any] = reference.srms_norm
        self._add_norm: Callable[..., Any] = reference.add_srms_norm
        self._backward: Callable[..., Any] = _one_gradient
        self._backward_pair: Callable[..., Any] = _both_gradients

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
        self._norm, self._add_norm, self._backward, self._backward_pair = (
            torch.compile(f, dynamic=False, fullgraph=True, mode=self.mode)
            for f in (self._norm, self._add_norm, self._backward, self._backward_pair)
        )

    def new_shape(self) -> None:
        torch.compiler.reset()
        gc.collect()


@provider("tocm", computes="the same with mode max-autotune-no-cudagraphs", keeps="what the partitioner chooses")
class CompiledAutotuned(Compiled):
    mode = "max-autotune-no-cudagraphs"


@provider("rms", computes="F.rms_norm without a weight, of x + residual", keeps="x or the sum, rstd")
class RMSNorm(Provider):
    residual_roundings = 3  # the rounded sum enters h and rstd

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
