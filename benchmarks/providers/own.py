"""The two of this repository: srmsnorm, and the Triton norm that stands in for what one would write without it."""

from contextlib import AbstractContextManager

import torch
from torch import Tensor

from .provider import EPS, Gating, Provider, provider


@provider("ours", computes="srmsnorm.srms_norm", keeps="rstd, 4 bytes a row")
class Ours(Provider):
    def __init__(self) -> None:
        import srmsnorm

        self.library = srmsnorm
        self.ops = torch.ops.srmsnorm

    def norm(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return self.library.srms_norm(x, residual, eps=EPS)

    def add_norm(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        return self.library.add_srms_norm(x, residual, eps=EPS)

    def saved(self, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, ...]:
        return self.ops._srms_norm(x, residual, EPS)

    def backward(self, grad_output: Tensor, saved: tuple[Tensor, ...], grad_sum: Tensor | None = None) -> Tensor:
        return self.ops._srms_norm_backward_input(grad_output, *saved, grad_sum)

    def backward_pair(
        self, grad_output: Tensor, saved: tuple[Tensor, ...], grad_sum: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return self.ops._srms_norm_backward_pair(grad_output, *saved, grad_sum)

    def gated(self, x: Tensor, gate: Tensor, how: Gating) -> Tensor:
        return self.library.gated_srms_norm(
            x, gate, activation=how.activation, norm_before_gate=how.norm_first, eps=EPS
        )

    def gated_saved(self, x: Tensor, gate: Tensor, how: Gating) -> tuple[Tensor, ...]:
        options = {"activation": how.activation, "norm_before_gate": how.norm_first}
        return x, gate, self.ops._gated_srms_norm(x, gate, **options, eps=EPS)[1]

    def gated_backward(self, grad_output: Tensor, saved: tuple[Tensor, ...], how: Gating) -> tuple[Tensor, Tensor]:
        options = {"activation": how.activation, "norm_before_gate": how.norm_first}
        return self.ops._gated_srms_norm_backward(grad_output, *saved, **options)

    def wide_norm(self, x: Tensor) -> Tensor:
        return self.library.srms_norm(x, eps=EPS, dtype=torch.float32)

    def wide_saved(self, x: Tensor) -> tuple[Tensor, ...]:
        return x, self.library.rstd(x, eps=EPS)

    def wide_backward(self, grad_output: Tensor, saved: tuple[Tensor, ...]) -> Tensor:
        return self.ops._srms_norm_backward_of_input(grad_output, *saved)

    def rstd(self, x: Tensor) -> Tensor:
        return self.library.rstd(x, eps=EPS)

    def quantized(self, x: Tensor, group_size: int | None) -> tuple[Tensor, Tensor]:
        return self.library.srms_norm_quantized(x, group_size=group_size, eps=EPS)

    def add_quantized(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.library.add_srms_norm_quantized(x, residual, eps=EPS)


@provider(
    "auto", computes='the same under inline_under_compile("auto"), in compiled models', keeps="rstd, 4 bytes a row"
)
class Auto(Ours):
    eager = False

    def compiling(self) -> AbstractContextManager[None]:
        return self.library.inline_under_compile("auto")


@provider("tr", computes="a Triton kernel pair of this benchmark", keeps="rstd, 4 bytes a row")
class Triton(Provider):
    devices = ("cuda",)
    caches = True

    def __init__(self) -> None:
        from . import triton_norm

        self.kernels = triton_norm

    def norm(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return self.kernels.srms_norm(x, residual, eps=EPS)

    def add_norm(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        return self.kernels.add_srms_norm(x, residual, eps=EPS)

    def saved(self, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, ...]:
        y, _, rstd = self.kernels.forward(x, residual, eps=EPS, write_rstd=True)
        assert rstd is not None
        return y, rstd

    def backward(self, grad_output: Tensor, saved: tuple[Tensor, ...], grad_sum: Tensor | None = None) -> Tensor:
        y, rstd = saved
        return self.kernels.backward(grad_output, y, rstd, grad_sum)

    def backward_pair(
        self, grad_output: Tensor, saved: tuple[Tensor, ...], grad_sum: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        y, rstd = saved
        return self.kernels.backward_pair(grad_output, y, rstd, grad_sum)
