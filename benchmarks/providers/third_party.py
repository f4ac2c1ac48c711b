"""Other libraries' norms, where they are installed, doing exactly the operation in question: one that also writes a sum
which nobody asked for stands only where the sum is asked for."""

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from .provider import EPS, Gating, Provider, provider


@provider("quack", computes="quack.rmsnorm without a weight; with a residual it always writes the sum", keeps="x, rstd")
class Quack(Provider):
    devices = ("cuda",)
    residual_roundings = 3

    def __init__(self) -> None:
        self.library: Any = import_module("quack.rmsnorm")  # quack.rmsnorm itself is a function of that name

    def norm(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if residual is not None:
            raise NotImplementedError
        return self.library.rmsnorm(x, eps=EPS)

    def add_norm(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        return self.library.rmsnorm(x, residual=residual, eps=EPS, prenorm=True)

    def wide_norm(self, x: Tensor) -> Tensor:
        return self.library.rmsnorm(x, out_dtype=torch.float32, eps=EPS)

    def saved(self, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, ...]:
        return x, self.library.rmsnorm_fwd(x, eps=EPS, store_rstd=True)[2]

    def backward(self, grad_output: Tensor, saved: tuple[Tensor, ...], grad_sum: Tensor | None = None) -> Tensor:
        x, rstd = saved
        return self.library.rmsnorm_bwd(x, None, grad_output, rstd, dresidual_out=grad_sum)[0]


@provider("liger", computes="Liger-Kernel's RMSNorm without a weight; its fused addition needs one", keeps="x, rstd")
class Liger(Provider):
    devices = ("cuda",)
    caches = True

    def __init__(self) -> None:
        self.library: Any = import_module("liger_kernel.ops.rms_norm")

    def norm(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if residual is not None:
            raise NotImplementedError
        return self.library.LigerRMSNormFunction.apply(x, None, EPS, 0.0, "gemma", False)

    def require_sum_gradient(self) -> None:
        raise NotImplementedError

    def saved(self, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, ...]:
        _, x, rstd, self.block, self.warps, self.casting = self.library.rms_norm_forward(
            x, None, EPS, 0.0, "gemma", row_mode=None
        )
        return x, rstd

    def backward(self, grad_output: Tensor, saved: tuple[Tensor, ...], grad_sum: Tensor | None = None) -> Tensor:
        if grad_sum is not None:
            raise NotImplementedError
        x, rstd = saved
        return self.library.rms_norm_backward(
            grad_output, x, None, rstd, 0.0, self.casting, self.block, self.warps, in_place=False, row_mode=None
        )[0].view_as(grad_output)


@provider("fla", computes="fla's rms_norm without a weight; with a residual it always writes the sum", keeps="x, rstd")
class FlashLinearAttention(Provider):
    devices = ("cuda",)
    caches = True
    residual_roundings = 3

    def __init__(self) -> None:
        self.library: Any = import_module("fla.modules.norm.layernorm")
        self.gates: Any = import_module("fla.modules.norm.fused_norm_gate")

    def norm(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if residual is not None:
            raise NotImplementedError
        return self.library.rms_norm(x, None, None, eps=EPS)

    def add_norm(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        return self.library.rms_norm(x, None, None, residual=residual, eps=EPS, prenorm=True)

    def saved(self, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, ...]:
        return x, self.library.layer_norm_fwd(x, None, None, eps=EPS, is_rms_norm=True)[2]

    def backward(self, grad_output: Tensor, saved: tuple[Tensor, ...], grad_sum: Tensor | None = None) -> Tensor:
        x, rstd = saved
        return self.library.layer_norm_bwd(
            grad_output, x, None, None, rstd=rstd, dres=grad_sum, has_residual=grad_sum is not None, is_rms_norm=True
        )[0]

    def gated(self, x: Tensor, gate: Tensor, how: Gating) -> Tensor:
        if how.activation is None or not how.norm_first:
            raise NotImplementedError
        return self.gates.rms_norm_gated(x, gate, None, None, how.activation, eps=EPS)

    def gated_saved(self, x: Tensor, gate: Tensor, how: Gating) -> tuple[Tensor, ...]:
        if how.activation is None or not how.norm_first:
            raise NotImplementedError
        options = {"activation": how.activation, "eps": EPS, "is_rms_norm": True}
        return x, gate, self.gates.layer_norm_gated_fwd(x, gate, None, None, **options)[2]

    def gated_backward(self, grad_output: Tensor, saved: tuple[Tensor, ...], how: Gating) -> tuple[Tensor, Tensor]:
        x, gate, rstd = saved
        options = {"activation": how.activation, "eps": EPS, "rstd": rstd, "is_rms_norm": True}
        return self.gates.layer_norm_gated_bwd(grad_output, x, gate, None, None, **options)[:2]


@provider("mamba", computes="mamba_ssm's gated norm, which needs a weight: ones; silu only", keeps="x, gate, rstd")
class Mamba(Provider):
    """Not counted among the best others: its kernels read a weight, multiply by it, and make its gradient."""

    devices = ("cuda",)
    caches = True

    def __init__(self) -> None:
        self.library: Any = import_module("mamba_ssm.ops.triton.layernorm_gated")

    def gated(self, x: Tensor, gate: Tensor, how: Gating) -> Tensor:
        return self.library.rmsnorm_fn(x, self._weight(x, how), None, z=gate, eps=EPS, norm_before_gate=how.norm_first)

    def gated_saved(self, x: Tensor, gate: Tensor, how: Gating) -> tuple[Tensor, ...]:
        weight = self._weight(x, how)
        options = {"z": gate, "norm_before_gate": how.norm_first, "is_rms_norm": True}
        return x, gate, weight, self.library._layer_norm_fwd(x, weight, None, EPS, **options)[2]

    def gated_backward(self, grad_output: Tensor, saved: tuple[Tensor, ...], how: Gating) -> tuple[Tensor, Tensor]:
        x, gate, weight, rstd = saved
        options = {"z": gate, "norm_before_gate": how.norm_first, "is_rms_norm": True}
        grads = self.library._layer_norm_bwd(grad_output, x, weight, None, EPS, None, rstd, **options)
        return grads[0], grads[3]

    def _weight(self, x: Tensor, how: Gating) -> Tensor:
        if how.activation != "silu":
            raise NotImplementedError
        return x.new_ones(x.shape[-1])


@provider("flashinfer", computes="flashinfer.rmsnorm, which needs a weight: ones; forward only", keeps="nothing")
class FlashInfer(Provider):
    """Not counted among the best others: its kernel reads a weight and multiplies by it."""

    devices = ("cuda",)
    roundings = 2

    def __init__(self) -> None:
        self.library: Any = import_module("flashinfer.norm")
        self.weight: Tensor | None = None

    def norm(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if residual is not None or torch.is_grad_enabled():
            raise NotImplementedError
        if self.weight is None or (self.weight.dtype, len(self.weight)) != (x.dtype, x.shape[-1]):
            self.weight = x.new_ones(x.shape[-1])
        return self.library.rmsnorm(x, self.weight, eps=EPS)

    def require_sum_gradient(self) -> None:
        raise NotImplementedError
