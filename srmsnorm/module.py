"""The norm, and the norm beside a gate, as modules."""

import operator
from collections.abc import Sequence
from numbers import Real
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from .functional import add_srms_norm, gated_srms_norm, srms_norm
from .reference import ACTIVATIONS

__all__ = ["SRMSNorm", "SRMSNormGated"]


def _wrong(input: Tensor, dim: int, module: str = "SRMSNorm") -> str:
    return f"{module}({dim}): the last dimension must be {dim}, got {list(input.shape)}"


@torch.fx.wrap  # one call in a symbolic trace, which cannot follow the condition
def _with_last_dim(input: Tensor, dim: int, module: str = "SRMSNorm") -> Tensor:
    fits = input.ndim > 0 and input.shape[-1] == dim
    if fits is True:
        return input
    if fits is not False and torch.compiler.is_compiling():  # a symbol: asserted where only the data tells it
        # A message without variables, which torch 2.11 does not trace.
        torch._check(fits, lambda: "srmsnorm: the last dimension must be the module's dim")
    elif not fits:
        raise RuntimeError(_wrong(input, dim, module))
    return input


def _checked_dim(dim: int | Sequence[int], module: str) -> int:
    """The int itself, or of a sequence of one."""
    single = dim[0] if isinstance(dim, (tuple, list)) and len(dim) == 1 else dim
    try:
        size = 0 if isinstance(single, (bool, Tensor)) else operator.index(single)  # type: ignore[arg-type]
    except TypeError:
        size = 0
    if size < 1:
        raise ValueError(f"srmsnorm: {module} takes a dim of at least 1, an int or a sequence of one, got {dim!r}")
    return size


def _checked_eps(eps: float | None, module: str) -> float | None:
    if eps is None or (isinstance(eps, Real) and not isinstance(eps, bool) and eps >= 0):
        return eps if eps is None else float(eps)
    raise ValueError(f"srmsnorm: {module} takes an eps of at least 0, or None, got {eps!r}")


def _checked_dtype(dtype: torch.dtype | None) -> torch.dtype | None:
    if dtype in (None, torch.float16, torch.bfloat16, torch.float32, torch.float64):
        return dtype
    raise ValueError(
        f"srmsnorm: SRMSNorm takes an out_dtype of float16, bfloat16, float32, float64 or None, got {dtype!r}"
    )


def _checked_activation(activation: str | None) -> str | None:
    if not (activation is None or isinstance(activation, str)) or activation not in ACTIVATIONS:
        raise ValueError(
            f"srmsnorm: SRMSNormGated takes an activation of None, 'silu', 'swish' or 'sigmoid', got {activation!r}"
        )
    return activation


def _checked_order(norm_before_gate: bool) -> bool:
    if not isinstance(norm_before_gate, bool):
        raise ValueError(f"srmsnorm: SRMSNormGated takes a bool as norm_before_gate, got {norm_before_gate!r}")
    return norm_before_gate


class SRMSNorm(nn.Module):
    """:func:`srmsnorm.srms_norm` over a last dimension of size ``dim``. No parameters, no state.

    Args:
        dim: size of the last dimension, at least 1; a sequence of one int, as :class:`torch.nn.RMSNorm` takes it, is
            taken too.
        eps: added to the mean square, inside the root; at least 0. None as in :func:`srmsnorm.srms_norm`.
        device: taken and ignored, as layer factories pass it.
        dtype: taken and ignored, as layer factories pass it: there are no parameters.
        out_dtype: of y, the ``dtype`` of :func:`srmsnorm.srms_norm`; None for the input's.

    Raises:
        ValueError: another dim, eps or out_dtype.
    """

    __constants__ = ["dim", "eps", "out_dtype"]
    dim: int
    eps: float | None
    out_dtype: torch.dtype | None

    def __init__(
        self,
        dim: int | Sequence[int],
        eps: float | None = 1e-6,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        out_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.dim = _checked_dim(dim, "SRMSNorm")
        self.eps = _checked_eps(eps, "SRMSNorm")
        self.out_dtype = _checked_dtype(out_dtype)

    @overload
    def forward(
        self, input: Tensor, residual: Tensor | None = None, *, return_sum: Literal[False] = False
    ) -> Tensor: ...
    @overload
    def forward(self, input: Tensor, residual: Tensor, *, return_sum: Literal[True]) -> tuple[Tensor, Tensor]: ...

    def forward(
        self, input: Tensor, residual: Tensor | None = None, *, return_sum: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """y, or (y, sum) with ``return_sum=True``.

        Args:
            input: shape (..., dim).
            residual: as in :func:`srmsnorm.srms_norm`.
            return_sum: also return ``input + residual``, in the residual's dtype; needs a residual.

        Raises:
            RuntimeError: the last dimension is not ``dim``, or as :func:`srmsnorm.srms_norm`.
            TypeError: ``return_sum=True`` without a residual.
        """
        input = _with_last_dim(input, self.dim)
        if not return_sum:
            return srms_norm(input, residual, eps=self.eps, dtype=self.out_dtype)
        if residual is None:
            raise TypeError(f"SRMSNorm({self.dim}): return_sum=True needs a residual, got None")
        return add_srms_norm(input, residual, eps=self.eps, dtype=self.out_dtype)

    def __prepare_scriptable__(self) -> nn.Module:
        return _Scriptable(self.dim, self.eps, self.out_dtype)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({"out_dtype": None, **state})  # modules pickled before there was one

    def extra_repr(self) -> str:
        return f"{self.dim}, eps={self.eps}" + (f", out_dtype={self.out_dtype}" if self.out_dtype else "")


class _Scriptable(nn.Module):
    """What ``torch.jit.script`` sees, as TorchScript has no keyword-only arguments: the norm without the sum."""

    def __init__(self, dim: int, eps: float | None, out_dtype: torch.dtype | None) -> None:
        super().__init__()
        self.dim = dim
        self.eps = eps
        self.dtype = None if out_dtype is None else str(out_dtype).removeprefix("torch.")

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        if input.ndim == 0 or input.shape[-1] != self.dim:
            raise RuntimeError(_wrong(input, self.dim))
        return torch.ops.srmsnorm.srms_norm(input, residual, eps=self.eps, dtype=self.dtype)


class SRMSNormGated(nn.Module):
    """:func:`srmsnorm.gated_srms_norm` over a last dimension of size ``dim``. No parameters, no state.

    Args:
        dim: as in :class:`SRMSNorm`.
        eps: as in :class:`SRMSNorm`.
        activation: None, "silu" (or "swish") or "sigmoid", of the gate.
        norm_before_gate: whether the norm is of the input, and its result is gated, or of the gated input.
        device: taken and ignored, as layer factories pass it.
        dtype: taken and ignored, as layer factories pass it.

    Raises:
        ValueError: another dim, eps, activation or norm_before_gate.
    """

    __constants__ = ["dim", "eps", "activation", "norm_before_gate"]
    dim: int
    eps: float | None
    activation: str | None
    norm_before_gate: bool

    def __init__(
        self,
        dim: int | Sequence[int],
        eps: float | None = 1e-6,
        activation: str | None = None,
        norm_before_gate: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.dim = _checked_dim(dim, "SRMSNormGated")
        self.eps = _checked_eps(eps, "SRMSNormGated")
        self.activation = _checked_activation(activation)
        self.norm_before_gate = _checked_order(norm_before_gate)

    def forward(self, input: Tensor, gate: Tensor) -> Tensor:
        """z.

        Args:
            input: shape (..., dim).
            gate: as in :func:`srmsnorm.gated_srms_norm`.

        Raises:
            RuntimeError: the last dimension is not ``dim``, or as :func:`srmsnorm.gated_srms_norm`.
        """
        return gated_srms_norm(
            _with_last_dim(input, self.dim, "SRMSNormGated"),
            gate,
            activation=self.activation,
            norm_before_gate=self.norm_before_gate,
            eps=self.eps,
        )

    def __prepare_scriptable__(self) -> nn.Module:
        return _ScriptableGated(self.dim, self.eps, self.activation, self.norm_before_gate)

    def extra_repr(self) -> str:
        order = "" if self.norm_before_gate else ", norm_before_gate=False"
        return f"{self.dim}, eps={self.eps}, activation={self.activation!r}{order}"


class _ScriptableGated(nn.Module):
    """What ``torch.jit.script`` sees, as TorchScript has no keyword-only arguments."""

    def __init__(self, dim: int, eps: float | None, activation: str | None, norm_before_gate: bool) -> None:
        super().__init__()
        self.dim = dim
        self.eps = eps
        self.activation = activation
        self.norm_before_gate = norm_before_gate

    def forward(self, input: Tensor, gate: Tensor) -> Tensor:
        if input.ndim == 0 or input.shape[-1] != self.dim:
            raise RuntimeError(_wrong(input, self.dim, "SRMSNormGated"))
        return torch.ops.srmsnorm.gated_srms_norm(
            input, gate, activation=self.activation, norm_before_gate=self.norm_before_gate, eps=self.eps
        )
