"""What is compared: one decorated class adds a provider. All compute the norm with the same eps."""

import gc
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

EPS = 1e-6
DEFAULT = ("ours", "tr", "to", "toc")


class Provider:
    """Methods that a provider leaves out are not compared. `x` and `residual` share their shape, contiguous; the
    residual may be float32 beside 16 bits."""

    name: ClassVar[str]
    computes: ClassVar[str]
    keeps: ClassVar[str]  # for backward, beside y
    devices: ClassVar[tuple[str, ...]] = ("cuda", "cpu")
    roundings: ClassVar[int] = 1  # to the dtype, on the way to y and to a gradient
    residual_roundings: ClassVar[int] = 1  # the same, with a residual or a gradient of the sum
    compiles: ClassVar[bool] = False  # for each shape anew, which takes seconds
    caches: ClassVar[bool] = False  # on disk what it compiles: another process may do it ahead

    def new_shape(self) -> None:
        """Called before another shape is measured."""

    def norm(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """y, differentiable in both."""
        raise NotImplementedError

    def add_norm(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """(y, sum), differentiable unless `require_sum_gradient` raises."""
        raise NotImplementedError

    def require_sum_gradient(self) -> None:
        """Raises NotImplementedError where a gradient does not go through `add_norm`."""

    def saved(self, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, ...]:
        """What backward takes beside the gradients; under no_grad."""
        raise NotImplementedError

    def backward(self, grad_output: Tensor, saved: tuple[Tensor, ...], grad_sum: Tensor | None = None) -> Tensor:
        """The gradient of x; under no_grad."""
        raise NotImplementedError

    def backward_pair(
        self, grad_output: Tensor, saved: tuple[Tensor, ...], grad_sum: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The gradients of x and of a float32 residual; under no_grad."""
        raise NotImplementedError


REGISTRY: dict[str, type[Provider]] = {}


def provider(name: str, *, computes: str, keeps: str) -> Callable[[type[Provider]], type[Provider]]:
    """Adds a provider under a name. Its own packages it imports in __init__: a missing one costs its column only."""

    def add(cls: type[Provider]) -> type[Provider]:
        cls.name, cls.computes, cls.keeps = name, computes, keeps
        REGISTRY[name] = cls
        return cls

    return add


def load(names: list[str], device: str) -> tuple[list[Provider], dict[str, str]]:
    """(the providers that are there, what is wrong with the others by name)."""
    there: list[Provider] = []
    missing: dict[str, str] = {}
    for name in names:
        cls = REGISTRY[name]
        if device not in cls.devices:
            missing[name] = f"does not run on {device}"
            continue
        try:
            there.append(cls())
        except ImportError as error:
            missing[name] = f"not installed: {error}"
    return there, missing


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


@provider("tr", computes="a Triton kernel pair of this benchmark", keeps="rstd, 4 bytes a row")
class Triton(Provider):
    devices = ("cuda",)
    caches = True

    def __init__(self) -> None:
        import triton_norm

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
