"""The norms that are compared: ours, PyTorch's, and the two ways to wrap a Triton kernel."""

import dataclasses
import pathlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.providers import EPS

DIM = 16  # of the module and of the samples


@dataclasses.dataclass(frozen=True)
class Candidate:
    norm: Callable[[Tensor], Tensor]
    module: Callable[[], nn.Module]
    operator: Any = None  # as torch.library knows it, and its arguments after x
    arguments: tuple[Any, ...] = ()
    library: str | None = ""  # to load for a saved model; "": torch alone; None: there is none


class _Module(nn.Module):
    def __init__(self, norm: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


def _ours() -> Candidate:
    import srmsnorm

    def norm(x: Tensor) -> Tensor:
        return srmsnorm.srms_norm(x, eps=EPS)

    (library,) = pathlib.Path(srmsnorm.__file__).parent.glob("_ops.*")
    op = torch.ops.srmsnorm.srms_norm.default
    return Candidate(norm, lambda: srmsnorm.SRMSNorm(DIM, EPS), op, (), str(library))


def _rms_norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], eps=EPS)


def _torch() -> Candidate:
    module = partial(nn.RMSNorm, DIM, EPS, elementwise_affine=False)
    return Candidate(_rms_norm, module, torch.ops.aten.rms_norm.default, ([DIM], None, EPS))


def _triton_srms_norm(x: Tensor) -> Tensor:
    from benchmarks.providers import triton_norm

    return triton_norm.srms_norm(x, eps=EPS)


def _triton() -> Candidate:
    """An autograd.Function whose two methods launch kernels."""
    return Candidate(_triton_srms_norm, partial(_Module, _triton_srms_norm), library=None)


def _custom_srms_norm(x: Tensor) -> Tensor:
    return torch.ops.srmsnorm_features.norm(x)[0]


def _custom_op() -> Candidate:
    """As the documentation of torch.library shows it: two operators with fakes, one with a backward."""
    _define_custom_op()
    op = torch.ops.srmsnorm_features.norm.default
    return Candidate(_custom_srms_norm, partial(_Module, _custom_srms_norm), op, library=None)


def _define_custom_op() -> None:
    if hasattr(torch.ops.srmsnorm_features, "norm"):
        return

    @torch.library.custom_op("srmsnorm_features::norm", mutates_args=())
    def norm(x: Tensor) -> tuple[Tensor, Tensor]:
        if x.is_cuda:
            from benchmarks.providers import triton_norm

            y, _, rstd = triton_norm.forward(x, eps=EPS, write_rstd=True)
            assert rstd is not None
            return y, rstd.view(x.shape[:-1])
        h = x.float()
        r = torch.rsqrt(h.square().mean(-1) + EPS)
        return (h * r[..., None]).to(x.dtype), r

    @torch.library.custom_op("srmsnorm_features::norm_backward", mutates_args=())
    def norm_backward(g: Tensor, y: Tensor, rstd: Tensor) -> Tensor:
        if g.is_cuda:
            from benchmarks.providers import triton_norm

            return triton_norm.backward(g.contiguous(), y, rstd)
        wide = y.float()
        return (rstd[..., None] * (g - wide * (wide * g).mean(-1, keepdim=True))).to(y.dtype)

    @norm.register_fake
    def _(x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.empty_like(x), x.new_empty(x.shape[:-1], dtype=torch.float32)

    @norm_backward.register_fake
    def _(g: Tensor, y: Tensor, rstd: Tensor) -> Tensor:
        return torch.empty_like(y)

    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*output)

    def backward(ctx: Any, g: Tensor, _: Any) -> Tensor:
        return torch.ops.srmsnorm_features.norm_backward(g, *ctx.saved_tensors)

    norm.register_autograd(backward, setup_context=setup_context)


CANDIDATES: dict[str, Callable[[], Candidate]] = {
    "srmsnorm": _ours,
    "F.rms_norm": _torch,
    "Triton in autograd.Function": _triton,
    "Python custom_op": _custom_op,
}
ON_CUDA_ONLY = ("Triton in autograd.Function",)
